"""Training from the options to the files, on a phantom with a small network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet.training.checkpoint import read_checkpoint
from scripts import train
from scripts.run_options import RunOptions
from utils.errors import DatasetError
from utils.run_log import read_log
from utils.storage import read_array, read_json

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]
MEASURED = ("speed/", "epoch_s", "train_s")  # what a clock says differs between equal runs


def typed(value: list[str] | str) -> str:
    """Flags as one would type them, for the name of a test."""
    return " ".join(value) if isinstance(value, list) else value


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
        (["--branch", "simple"], "train/loss_class"),
        (["--branch", "roi_pooled:dropout=0.9"], "train/loss_class"),
        (["--filters", "2", "3"], "train/loss"),
        (["--norm", "batch"], "train/loss"),
        (["--norm", "group"], "train/loss"),
        (["--negative_slope", "0.3"], "train/loss"),
        (["--deep_supr_num", "1"], "train/loss_segmentation"),
        (["--class_loss_weight", "2"], "train/loss"),
        (["--no_class_balance"], "train/loss_class"),
        (["--batch_dice", "True"], "train/loss_segmentation"),
        (["--optimizer", "sgd"], "learning_rate"),
        (["--learning_rate", "1e-5"], "learning_rate"),
        (["--schedule", "cosine"], "learning_rate"),
        (["--schedule", "poly"], "learning_rate"),
        (["--warmup_steps", "9"], "learning_rate"),
        (["--weight_decay", "50"], "val/loss"),
        (["--gradient_clip_val", "1e-8"], "val/loss"),
        (["--ema", "0.9"], "val/loss"),
        (["--batch_size", "1"], "train/loss"),
        (["--oversampling", "1"], "train/loss"),
        (["--augment", "none"], "train/loss"),
        (["--steps_per_epoch", "1"], "train/loss"),
        (["--seed", "2"], "train/loss"),
        (["--overlap", "0.5"], "val/loss"),
        (["--dim", "2"], "train/loss"),
    ],
    ids=typed,
)
def test_the_flag_changes_the_run(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str], metric: str
) -> None:
    assert short_run(*flags)[-1][metric] != short_run()[-1][metric]


@pytest.mark.parametrize(
    ("flags", "extra", "metric"),
    [
        (["--optimizer", "sgd"], ["--momentum", "0"], "val/loss"),
        (["--dim", "2"], ["--lesion_free_weight", "0"], "train/loss_class"),
        (["--overlap", "0.5"], ["--blend", "constant"], "val/loss"),
        (["--deep_supr_num", "1"], ["--no_deep_supervision"], "train/loss_segmentation"),
    ],
    ids=["momentum", "lesion_free_weight", "blend", "deep_supervision"],
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
        (["--epochs", "3"], "vvv"),
        (["--max_epochs", "1"], "v"),
        (["--epochs", "4", "--val_every", "2"], "-v-v"),
        (["--epochs", "3", "--val_every", "2"], "-vv"),
        (["--epochs", "3", "--skip_first_n_eval", "2"], "--v"),
        (["--epochs", "9", "--val_every", "5", "--time_budget", "1e-4"], "v"),
        (["--epochs", "9", "--time_budget", "1e-4"], "v"),
        (["--epochs", "6", "--learning_rate", "0", "--patience", "2"], "vvv"),
        (["--epochs", "6", "--learning_rate", "0", "--patience", "2", "--min_epochs", "5"], "vvvvv"),
        (["--epochs", "5", "--learning_rate", "0", "--patience", "0"], "vvvvv"),
    ],
    ids=typed,
)
def test_epochs_last_and_are_validated_as_asked(
    short_run: Callable[..., list[dict[str, Any]]], flags: list[str], validated: str
) -> None:
    assert "".join("v" if "val/loss" in line else "-" for line in short_run(*flags)) == validated


def test_without_checkpoints_only_the_log_and_the_folds_are_written(
    run_options: Options, tmp_path: Path
) -> None:
    train.run(run_options(tmp_path, "--no_save_ckpt", "--logname", "other.json", "--max_epochs", "1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "splits_final.json"]
    assert len(epochs_of(tmp_path, "other.json")) == 1


def test_amp_computes_in_bfloat16_or_says_why_not(
    short_run: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = short_run("--amp")[-1]["train/loss"]
    assert mixed == pytest.approx(short_run()[-1]["train/loss"], rel=0.1)
    said_why = "--amp has no effect here" in capsys.readouterr().err
    assert (mixed == short_run()[-1]["train/loss"]) == said_why


def test_compile_hands_the_network_to_the_compiler(
    run_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    train.run(run_options(tmp_path, "--no_save_ckpt", "--max_epochs", "1", "--compile"))
    assert len(compiled) == 1


def test_a_fold_that_does_not_exist_is_named(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has the folds 0 to 0, not fold 3"):
        train.run(run_options(tmp_path, "--fold", "3"))


def test_an_unprepared_task_says_how_to_prepare_it(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no preprocessed folder 07_3d.*preprocess\.py"):
        train.run(run_options(tmp_path, "--task", "07"))
