"""Training from the options to the files, on a phantom with a small network."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from nnunet.training.checkpoint import read_checkpoint
from nnunet.training.module import MultiTaskModule
from scripts import inference, train
from scripts.fold_data import read_fold
from scripts.run_options import RunOptions
from utils.contracts import Batch
from utils.errors import DatasetError, UserError
from utils.run_log import read_log
from utils.storage import read_array, read_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story
TASK = "500"

Options = Callable[..., RunOptions]
MEASURED = ("speed/", "epoch_s", "train_s")  # what a clock says differs between equal runs


def proof(*values: Any) -> Any:
    """Parameters of a test whose last list holds the flags that it proves, which name and mark it."""
    flags: list[str] = [value for value in values if isinstance(value, list)][-1]
    names = [word.removeprefix("--").removeprefix("no_") for word in flags if word.startswith("--")]
    return pytest.param(*values, marks=pytest.mark.flag(*names), id=" ".join(flags))


def epochs_of(results: Path, name: str = "logs.json") -> list[dict[str, Any]]:
    """The metrics of every epoch, without those that a clock measured."""
    lines = [line for line in read_log(results / name) if line["type"] == "LOG" and len(line["step"]) == 1]
    return [
        {key: value for key, value in line["data"].items() if not key.startswith(MEASURED)} for line in lines
    ]


@pytest.fixture(scope="session")
def short_run(
    run_options: Options, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict[str, Any]]]:
    """Train without checkpoints and return the metrics of the epochs; equal flags are trained once."""
    known: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def metrics(*flags: str) -> list[dict[str, Any]]:
        if flags not in known:
            results = tmp_path_factory.mktemp("short")
            train.run(run_options(results, "--no_save_ckpt", *flags))
            known[flags] = epochs_of(results)
        return known[flags]

    return metrics


def weights_of(results: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(results / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.flag("results", "exec_mode")
def test_a_run_leaves_its_checkpoints_log_masks_scores_and_report(trained: Path) -> None:
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*")}
    assert {"checkpoints/last.ckpt", "logs.json", "final_metrics.json", "report.html"} <= names
    assert {f"validation/{name}" for name in ("predictions.csv", "metrics.csv", "summary.json")} <= names
    assert len([name for name in names if name.startswith("checkpoints/epoch=")]) == 1
    assert len(list((trained / "validation").glob("*.nii.gz"))) == 3


def test_the_log_has_every_score_of_every_epoch(trained: Path) -> None:
    first, second = epochs_of(trained)
    expected = {"train/loss", "train/loss_segmentation", "train/loss_class", "learning_rate", "val/loss"}
    expected |= {"val/score", "val/dsc", "val/dsc_1", "val/dsc_2", "val/macro_f1", "val/macro_f1_constant"}
    expected |= {"val/collapsed"}
    assert set(first) == set(second) == expected


def test_the_log_begins_with_all_options(trained: Path) -> None:
    options = read_log(trained / "logs.json")[0]
    assert options["step"] == "PARAMETER"
    assert (options["data"]["epochs"], options["data"]["npz"]) == (2, True)


def test_the_final_metrics_hold_dice_and_class_scores(trained: Path) -> None:
    metrics = read_json(trained / "final_metrics.json")
    assert metrics["num_cases"] == 3
    assert 0 <= metrics["dsc_mean"] <= 1
    assert metrics["classification"] is not None


@pytest.mark.flag("npz")
def test_npz_keeps_the_probabilities_of_the_validation_cases(trained: Path) -> None:
    files = sorted((trained / "validation" / "probabilities").glob("*.npy"))
    assert len(files) == 3
    probs = read_array(files[0])
    assert (probs.dtype, probs.shape[0]) == ("float16", 3)


def test_an_equal_run_is_equal_bit_by_bit(trained: Path, run_options: Options, tmp_path: Path) -> None:
    train.run(run_options(tmp_path))
    ours, theirs = weights_of(tmp_path), weights_of(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list((tmp_path / "validation" / "probabilities").glob("*.npy"))


@pytest.mark.flag("resume_training")
def test_a_resumed_run_ends_where_a_straight_one_does(run_options: Options, tmp_path: Path) -> None:
    flags = ["--ema", "0.9", "--no_deep_supervision"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train.run(run_options(straight, "--epochs", "4", *flags))
    train.run(run_options(resumed, *flags))
    train.run(run_options(resumed, "--epochs", "4", "--resume_training", *flags))
    assert [line["train/loss"] for line in epochs_of(resumed)] == [
        line["train/loss"] for line in epochs_of(straight)
    ]
    ours, theirs = weights_of(resumed), weights_of(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resuming_without_a_checkpoint_says_what_to_do(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Leave the switch off to start afresh"):
        train.run(run_options(tmp_path, "--resume_training"))


def test_resuming_with_another_batch_size_is_refused(run_options: Options, tmp_path: Path) -> None:
    train.run(run_options(tmp_path, "--max_epochs", "1"))
    with pytest.raises(DatasetError, match="had batch_size 2; this run has batch_size 1"):
        train.run(run_options(tmp_path, "--resume_training", "--epochs", "3", "--batch_size", "1"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--branch", "simple"], "architecture.branch"), (["--ema", "0.9"], "ema")],
)
def test_resuming_another_model_is_refused_by_name(
    run_options: Options, tmp_path: Path, flags: list[str], named: str
) -> None:
    train.run(run_options(tmp_path, "--max_epochs", "1"))
    with pytest.raises(DatasetError, match=f"another {named}"):
        train.run(run_options(tmp_path, "--resume_training", "--epochs", "3", *flags))


def test_a_resume_takes_the_learning_rate_of_its_own_command_line(
    run_options: Options, tmp_path: Path
) -> None:
    train.run(run_options(tmp_path, "--max_epochs", "1"))
    train.run(run_options(tmp_path, "--resume_training", "--epochs", "2", "--learning_rate", "1e-5"))
    assert [line["learning_rate"] for line in epochs_of(tmp_path)][-1] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("flags", "metric"),
    [
        proof(["--branch", "simple"], "train/loss_class"),
        proof(["--branch", "roi_pooled:dropout=0.9"], "train/loss_class"),
        proof(["--filters", "2", "3"], "train/loss"),
        proof(["--norm", "batch"], "train/loss"),
        proof(["--norm", "group"], "train/loss"),
        proof(["--negative_slope", "0.3"], "train/loss"),
        proof(["--deep_supr_num", "1"], "train/loss_segmentation"),
        proof(["--class_loss_weight", "2"], "train/loss"),
        proof(["--no_class_balance"], "train/loss_class"),
        proof(["--class_loss", "focal:gamma=1"], "train/loss_class"),
        proof(["--batch_dice", "True"], "train/loss_segmentation"),
        proof(["--optimizer", "sgd"], "learning_rate"),
        proof(["--learning_rate", "1e-5"], "learning_rate"),
        proof(["--schedule", "cosine"], "learning_rate"),
        proof(["--schedule", "poly"], "learning_rate"),
        proof(["--warmup_steps", "9"], "learning_rate"),
        proof(["--scheduler"], "learning_rate"),
        proof(["--weight_decay", "50"], "val/loss"),
        proof(["--gradient_clip_val", "1e-8"], "val/loss"),
        proof(["--ema", "0.9"], "val/loss"),
        proof(["--batch_size", "1"], "train/loss"),
        proof(["--oversampling", "1"], "train/loss"),
        proof(["--augment", "none"], "train/loss"),
        proof(["--steps_per_epoch", "1"], "train/loss"),
        proof(["--seed", "2"], "train/loss"),
        proof(["--overlap", "0.5"], "val/loss"),
        proof(["--dim", "2"], "train/loss"),
    ],
)
def test_the_flag_changes_the_run(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str], metric: str
) -> None:
    assert short_run(*flags)[-1][metric] != short_run()[-1][metric]


@pytest.mark.parametrize(
    ("flags", "extra", "metric"),
    [
        proof(["--optimizer", "sgd"], ["--momentum", "0"], "val/loss"),
        proof(["--dim", "2"], ["--lesion_free_weight", "0"], "train/loss_class"),
        proof(["--overlap", "0.5"], ["--blend", "constant"], "val/loss"),
        proof(["--deep_supr_num", "1"], ["--no_deep_supervision"], "train/loss_segmentation"),
    ],
)
def test_the_flag_changes_a_run_that_depends_on_it(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str], extra: list[str], metric: str
) -> None:
    assert short_run(*flags, *extra)[-1][metric] != short_run(*flags)[-1][metric]


@pytest.mark.parametrize("flags", [["--prefetch", "1"], ["--num_workers", "2"]])
def test_flags_for_loading_speed_leave_every_number_alone(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str]
) -> None:
    assert short_run(*flags)[-1] == short_run()[-1]


@pytest.mark.flag("val_batch_size")
def test_windows_at_once_leave_training_alone_and_validation_but_for_rounding(
    short_run: Callable[..., list[dict[str, Any]]],
) -> None:
    changed, plain = short_run("--val_batch_size", "1")[-1], short_run()[-1]
    assert changed["train/loss"] == plain["train/loss"]
    # The sums of a convolution depend on the batch in the last bit, and Dice moves by whole voxels of a mask.
    assert changed == {name: pytest.approx(value, rel=1e-3) for name, value in plain.items()}


def test_the_weight_average_is_validated_but_does_not_steer_training(
    short_run: Callable[..., list[dict[str, Any]]],
) -> None:
    assert short_run("--ema", "0.9")[-1]["train/loss"] == short_run()[-1]["train/loss"]


def test_without_branch_there_is_no_class_score(short_run: Callable[..., list[dict[str, Any]]]) -> None:
    last = short_run("--branch", "none")[-1]
    assert last["train/loss_class"] == 0
    assert "val/macro_f1" not in last


@pytest.mark.parametrize(
    ("flags", "validated"),
    [
        proof(["--epochs", "3"], "vvv"),
        proof(["--max_epochs", "1"], "v"),
        proof(["--epochs", "4", "--val_every", "2"], "-v-v"),
        proof(["--epochs", "3", "--val_every", "2"], "-vv"),
        proof(["--epochs", "3", "--skip_first_n_eval", "2"], "--v"),
        proof(["--epochs", "9", "--val_every", "5", "--time_budget", "1e-4"], "v"),
        proof(["--epochs", "9", "--time_budget", "1e-4"], "v"),
        proof(["--epochs", "6", "--learning_rate", "0", "--patience", "2"], "vvv"),
        proof(["--epochs", "6", "--learning_rate", "0", "--patience", "2", "--min_epochs", "5"], "vvvvv"),
        proof(["--epochs", "5", "--learning_rate", "0", "--patience", "0"], "vvvvv"),
    ],
)
def test_epochs_last_and_are_validated_as_asked(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str], validated: str
) -> None:
    assert "".join("v" if "val/loss" in line else "-" for line in short_run(*flags)) == validated


@pytest.mark.flag("save_ckpt", "logname")
def test_without_checkpoints_only_the_log_and_the_folds_are_written(
    run_options: Options, tmp_path: Path
) -> None:
    train.run(run_options(tmp_path, "--no_save_ckpt", "--logname", "other.json", "--max_epochs", "1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "splits_final.json"]
    assert len(epochs_of(tmp_path, "other.json")) == 1


@pytest.mark.flag("amp")
def test_amp_computes_in_bfloat16_or_says_why_not(
    short_run: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = short_run("--amp")[-1]["train/loss"]
    assert mixed == pytest.approx(short_run()[-1]["train/loss"], rel=0.1)
    said_why = "--amp has no effect here" in capsys.readouterr().err
    assert (mixed == short_run()[-1]["train/loss"]) == said_why


@pytest.mark.flag("compile")
def test_compile_hands_the_network_to_the_compiler(
    run_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    train.run(run_options(tmp_path, "--no_save_ckpt", "--max_epochs", "1", "--compile"))
    assert len(compiled) == 1


@pytest.mark.flag("fold")
def test_a_fold_that_does_not_exist_is_named(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has only fold 0, not fold 3"):
        train.run(run_options(tmp_path, "--fold", "3"))


@pytest.mark.flag("task")
def test_an_unprepared_task_says_how_to_prepare_it(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no preprocessed folder 07_3d.*preprocess\.py"):
        train.run(run_options(tmp_path, "--task", "07"))


@pytest.mark.flag("ckpt_store_dir")
def test_checkpoints_can_lie_elsewhere_and_are_found_there(run_options: Options, tmp_path: Path) -> None:
    results, store = tmp_path / "results", tmp_path / "store"
    flags = ["--ckpt_store_dir", str(store), "--filters", "2"]
    assert train.run(run_options(results, "--max_epochs", "1", *flags)).parent == store / "checkpoints"
    assert not (results / "checkpoints").exists()
    train.run(run_options(results, "--epochs", "2", "--resume_training", *flags))
    assert len(epochs_of(results)) == 2
    report = inference.evaluate(run_options(results, *flags))
    assert report.parent == results


@pytest.mark.flag("train_batches")
def test_an_epoch_ends_after_so_many_steps(run_options: Options, tmp_path: Path) -> None:
    flags = ["--no_save_ckpt", "--max_epochs", "2", "--steps_per_epoch", "0", "--filters", "2"]
    train.run(run_options(tmp_path, "--train_batches", "3", *flags))
    parameters = read_log(tmp_path / "logs.json")[0]["data"]
    assert parameters["resolved"]["steps_per_epoch"] == {"value": 3, "source": "--train_batches"}
    assert len(epochs_of(tmp_path)) == 2


@pytest.mark.flag("test_batches")
def test_validation_takes_so_many_volumes_and_the_final_one_takes_all(
    run_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated, step = list[str](), MultiTaskModule.validation_step

    def spy(module: MultiTaskModule, batch: Batch, place: int) -> None:
        validated.extend(batch.case_ids)
        step(module, batch, place)

    monkeypatch.setattr(MultiTaskModule, "validation_step", spy)
    train.run(run_options(tmp_path, "--test_batches", "2", "--max_epochs", "1", "--filters", "2"))
    assert len(validated) == 2
    assert read_json(tmp_path / "final_metrics.json")["num_cases"] == 3


def test_the_log_tells_who_set_an_option_and_what_unset_ones_came_to(
    run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origins = {"epochs": "command line", "momentum": "recipe nnunet"}
    options = run_options(tmp_path, "--no_save_ckpt", "--max_epochs", "1", "--batch_dice", "True")
    train.run(options, origins)
    parameters = read_log(tmp_path / "logs.json")[0]["data"]
    assert parameters["origins"] == origins
    resolved = parameters["resolved"]
    assert resolved["batch_size"] == {"value": 2, "source": "plan"}
    assert resolved["filters"] == {"value": [8, 8, 8], "source": "plan"}
    assert resolved["learning_rate"] == {"value": 8e-4, "source": "adam"}
    assert resolved["deep_supr_num"] == {"value": 0, "source": "plan"}
    assert not {"batch_dice", "device", "steps_per_epoch", "epochs"} & resolved.keys()
    said = capsys.readouterr().err
    assert "Options of command line: epochs 2\n" in said
    assert "Options of recipe nnunet: momentum 0.99\n" in said
    assert "Left unset: batch_size 2 (plan), " in said


@pytest.mark.flag("fold", "nfolds")
def test_without_folds_of_its_own_a_dataset_is_cut_into_as_many_as_asked(
    phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    prepared = tmp_path / f"{TASK}_3d"
    shutil.copytree(phantom.prepared / f"{TASK}_3d", prepared)
    (prepared / "splits_final.json").unlink()
    flags = ["--data", str(tmp_path), "--nfolds", "3"]
    held_out = []
    for fold in ("0", "1", "2"):
        cases = read_fold(run_options(tmp_path / "results", *flags, "--fold", fold))
        assert len(cases.folds) == 3
        held_out += [case.case_id for case in cases.validation]
    assert len(held_out) == len(set(held_out)) == 12
    with pytest.raises(DatasetError, match="^--nfolds 3 has the folds 0 to 2, not fold 3"):
        read_fold(run_options(tmp_path / "results", *flags, "--fold", "3"))


@pytest.mark.flag("profile")
def test_profile_leaves_a_trace(run_options: Options, tmp_path: Path) -> None:
    train.run(run_options(tmp_path, "--no_save_ckpt", "--max_epochs", "1", "--filters", "2", "--profile"))
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"trace.json", "summary.txt"}


@pytest.mark.parametrize("words", [["-i", "x"], ["-o", "x"], ["--shard", "1/2"], ["--save_preds"]])
def test_what_only_a_prediction_has_is_refused_in_training(
    run_options: Options, tmp_path: Path, words: list[str]
) -> None:
    with pytest.raises(UserError, match="only a prediction has that"):
        train.run(run_options(tmp_path, *words))


def test_a_prepared_folder_of_another_dimension_is_refused(
    phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    folder = phantom.prepared / f"{TASK}_2d"
    with pytest.raises(UserError, match="is planned for --dim 2, not 3. Give --dim 2"):
        train.run(run_options(tmp_path, "--data", str(folder)))
