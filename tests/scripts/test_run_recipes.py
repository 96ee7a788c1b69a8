"""The command line of a run: NVIDIA's defaults, nnU-Net's recipe, what is refused."""

from pathlib import Path

import pytest

from scripts import train
from scripts.run_options import RunOptions
from scripts.run_recipes import NNUNET, RULES, read_command, training_script_rules
from utils.errors import UserError
from utils.options import describe, flatten


def command(*words: str) -> RunOptions:
    return read_command(words, program="main.py", description="").options


def test_the_defaults_are_nvidias_but_for_those_that_the_plan_knows_better() -> None:
    told = {
        "exec_mode": "train",
        "data": "/data",
        "results": "/results",
        "task": "01",
        "dim": 3,
        "gpus": 1,
        "nodes": 1,
        "gradient_clip_val": 0.0,
        "negative_slope": 0.01,
        "tta": False,
        "deep_supervision": False,
        "amp": False,
        "focal": False,
        "brats": False,
        "nfolds": 5,
        "fold": 0,
        "skip_first_n_eval": 0,
        "patience": 100,
        "val_batch_size": 4,
        "momentum": 0.99,
        "save_preds": False,
        "resume_training": False,
        "num_workers": 8,
        "epochs": 1000,
        "norm": "instance",
        "res_block": False,
        "layout": "NCDHW",
        "data2d_dim": 3,
        "oversampling": 0.4,
        "overlap": 0.5,
        "blend": "gaussian",
        "scheduler": False,
        "optimizer": "adam",
        "train_batches": 0,
        "test_batches": 0,
        "warmup": 5,
        "recipe": "nvidia",
    }
    found = describe(command())
    assert {name: found[name] for name in told} == told
    unset = ("batch_size", "depth", "min_fmap", "deep_supr_num", "learning_rate", "weight_decay", "ckpt_path")
    assert [found[name] for name in unset] == [None] * len(unset)


@pytest.mark.flag("recipe")
def test_the_recipe_of_nnunet_sets_its_training_and_yields_to_what_is_typed() -> None:
    found = describe(command("--recipe", "nnunet", "--momentum", "0.9"))
    assert {name: found[name] for name in NNUNET} == NNUNET | {"momentum": 0.9}
    assert set(NNUNET) <= set(flatten(RunOptions))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--brats22_model"], "Use --brats --deep_supervision --depth 6"),
        (["--bind"], "use --affinity"),
        (["--norm", "instance_nvfuser"], "Use --norm instance"),
        (["--norm=instance_nvfuser"], "Use --norm instance"),
    ],
)
def test_what_others_have_and_this_program_lacks_names_its_replacement(
    words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        command(*words)


def test_what_a_refusal_recommends_can_be_typed() -> None:
    words = RULES.refused["brats22_model"].split("Use ")[1].removesuffix(" instead.").split()
    assert command(*words).network.depth == 6


@pytest.mark.flag("config")
def test_a_file_can_choose_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"recipe": "nnunet", "epochs": 3}', encoding="utf-8")
    options = command("--config", str(tmp_path / "run.json"))
    assert (options.optimiser.optimizer, options.training.epochs) == ("sgd", 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (True, 300, 100)),
        (["--gpus", "2"], (True, 600, 150)),
        (["--epochs", "7"], (True, 7, 0)),
        (["--max_epochs", "7"], (True, 1000, 0)),
        (["--skip_first_n_eval", "3"], (True, 1000, 3)),
        (["--no_deep_supervision"], (False, 300, 100)),
        (["--recipe", "nnunet"], (True, 1000, 0)),
    ],
)
def test_the_training_script_has_nvidias_own_defaults(
    words: list[str], expected: tuple[bool, int, int]
) -> None:
    rules = training_script_rules(words)
    options = read_command(words, program="train.py", description="", rules=rules).options
    training = options.training
    assert (options.network.deep_supervision, training.epochs, training.skip_first_n_eval) == expected


def test_the_training_script_does_nothing_but_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--exec_mode", "predict"])
    with pytest.raises(UserError, match="trains"):
        train.main()


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "nan"],
        ["--learning_rate", "-1"],
        ["--head_learning_rate", "-1"],
        ["--weight_decay", "-1"],
        ["--momentum", "1.5"],
        ["--momentum", "-1"],
        ["--warmup_steps", "-1"],
        ["--gradient_clip_val", "-1"],
        ["--ema", "1"],
        ["--ema", "-0.5"],
        ["--negative_slope", "nan"],
        ["--class_loss_weight", "-1"],
        ["--lesion_free_weight", "-1"],
        ["--epochs", "0"],
        ["--epochs", "-1"],
        ["--max_epochs", "0"],
        ["--min_epochs", "-1"],
        ["--patience", "-1"],
        ["--val_every", "0"],
        ["--skip_first_n_eval", "-1"],
        ["--time_budget", "0"],
        ["--train_batches", "-1"],
        ["--test_batches", "-1"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--fold", "-1"],
        ["--nfolds", "1"],
        ["--warmup", "0"],
    ],
)
def test_a_number_that_no_run_can_have_is_refused_by_its_option(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"{words[0]} should be"):
        command(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min_epochs", "5", "--epochs", "3"], "--min_epochs 5 is more than the 3 epochs"),
        (["--logname", ""], "--logname is the name of a file"),
        (["--logname", "a/b.json"], "--logname is the name of a file"),
    ],
)
def test_a_contradiction_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command(*words)
