"""What learns in a training, and from where: tasks, frozen parts, other weights, rates, task weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint
from scripts import train
from scripts.run_options import RunOptions
from utils.errors import DatasetError, UserError
from utils.run_log import read_log

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]
QUICK = ["--max_epochs", "1", "--fit_classifier", "none"]


def log_of(results: Path) -> list[dict[str, Any]]:
    """The options, then the metrics of every epoch."""
    lines = [line for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return [line["data"] for line in lines if line["step"] == "PARAMETER" or len(line["step"]) == 1]


def last_weights(results: Path) -> dict[str, Tensor]:
    return read_checkpoint(results / "checkpoints" / "last.ckpt")["state_dict"]


def best_of(results: Path) -> Path:
    return next((results / "checkpoints").glob("epoch=*.ckpt"))


STATISTICS = (".mean", ".variance", ".num_cases")  # of the branch's features: they move at a rate of 0 too


def moved_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of the network whose weights differ: encoder, decoder, branch. Statistics are no weights."""
    return {
        name.split(".")[1]
        for name in before
        if name.startswith("network.")
        and not name.endswith(STATISTICS)
        and not torch.equal(before[name], after[name])
    }


@pytest.mark.flag("learn")
def test_the_segmentation_alone_has_no_branch(run_options: Options, tmp_path: Path) -> None:
    train.run(run_options(tmp_path, "--learn", "segmentation", *QUICK))
    *_, epoch = log_of(tmp_path)
    assert epoch["train/loss_class"] == 0
    assert epoch["train/loss"] == pytest.approx(epoch["train/loss_segmentation"])
    assert "val/macro_f1" not in epoch
    assert not [name for name in last_weights(tmp_path) if ".branch." in name]


@pytest.mark.flag("learn")
def test_the_class_alone_is_scored_by_the_class(
    run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(run_options(tmp_path, "--learn", "classification", "--branch", "bottleneck", *QUICK))
    *_, epoch = log_of(tmp_path)
    assert epoch["train/loss_segmentation"] == 0
    assert epoch["train/loss"] == pytest.approx(0.3 * epoch["train/loss_class"])
    assert epoch["val/score"] == epoch["val/macro_f1"]
    said = capsys.readouterr().err
    assert "M parameters learn." in said
    assert "The segmentation does not learn" in said


@pytest.mark.flag("ckpt_path")
def test_training_starts_from_the_weights_of_a_checkpoint(
    trained: Path, run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = best_of(trained)
    train.run(run_options(tmp_path, "--ckpt_path", str(start), "--learning_rate", "0", *QUICK))
    assert moved_parts(read_checkpoint(start)["state_dict"], last_weights(tmp_path)) == set()
    options, *_ = log_of(tmp_path)
    assert options["warm_start"]["checkpoint"] == str(start)
    assert options["warm_start"]["missing"] == options["warm_start"]["other_shape"] == []
    assert options["warm_start"]["prepared_otherwise"] == []
    assert f"{options['warm_start']['num_loaded']} weights taken from {start}." in capsys.readouterr().err


@pytest.mark.flag("ckpt_path")
def test_a_start_from_cases_that_were_normalised_otherwise_says_so(
    trained: Path, run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_checkpoint(best_of(trained))
    content[MODEL_KEY]["plan"] |= {"normalisers": ["unit_range"]}
    torch.save(content, tmp_path / "first.ckpt")
    flags = ["--ckpt_path", str(tmp_path / "first.ckpt")]
    train.run(run_options(tmp_path / "second", *flags, *QUICK))
    said = capsys.readouterr().err
    assert (
        f"The cases of {tmp_path / 'first.ckpt'} were prepared otherwise: channel 0: unit_range there" in said
    )


@pytest.mark.flag("freeze")
@pytest.mark.parametrize(("freeze", "moved"), [("encoder", {"decoder", "branch"}), ("backbone", {"branch"})])
def test_what_is_frozen_stays_as_it_was(
    trained: Path, run_options: Options, tmp_path: Path, freeze: str, moved: set[str]
) -> None:
    start = best_of(trained)
    train.run(run_options(tmp_path, "--ckpt_path", str(start), "--freeze", freeze, *QUICK))
    before, after = read_checkpoint(start)["state_dict"], last_weights(tmp_path)
    assert moved_parts(before, after) == moved
    with pytest.raises(DatasetError, match="other parts of the network learned"):
        train.run(run_options(tmp_path, "--resume_training", "--epochs", "2"))


@pytest.mark.flag("head_learning_rate")
def test_the_head_can_learn_at_a_rate_of_its_own(trained: Path, run_options: Options, tmp_path: Path) -> None:
    start = best_of(trained)
    flags = ["--ckpt_path", str(start), "--learning_rate", "0", "--head_learning_rate", "1e-3"]
    train.run(run_options(tmp_path, *flags, "--schedule", "poly", "--weight_decay", "0", *QUICK))
    assert moved_parts(read_checkpoint(start)["state_dict"], last_weights(tmp_path)) == {"branch"}
    *_, epoch = log_of(tmp_path)
    assert epoch["learning_rate"] == 0
    assert epoch["learning_rate_head"] == pytest.approx(1e-3 * 0.5**0.9)


@pytest.mark.flag("task_balance", "resume_training", "head_learning_rate")
def test_learned_weights_and_rates_go_on_after_an_interruption(run_options: Options, tmp_path: Path) -> None:
    flags = ["--task_balance", "--head_learning_rate", "0.01", "--fit_classifier", "none"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train.run(run_options(straight, *flags))
    train.run(run_options(resumed, *flags, "--max_epochs", "1"))
    with pytest.raises(DatasetError, match="another task_balance"):
        train.run(run_options(resumed, "--resume_training"))
    train.run(run_options(resumed, *flags, "--resume_training"))
    ours, theirs = last_weights(resumed), last_weights(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    _, first, second = log_of(straight)
    assert first["train/weight_class"] == pytest.approx(0.3, rel=0.05)
    assert second["train/weight_class"] > first["train/weight_class"]
    assert second["train/weight_segmentation"] != first["train/weight_segmentation"]


@pytest.mark.flag("task_balance")
def test_without_a_class_there_is_nothing_to_balance(run_options: Options, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only one of the two learns"):
        train.run(run_options(tmp_path, "--task_balance", "--branch", "none"))
    with pytest.raises(UserError, match="should then lie between"):
        train.run(run_options(tmp_path, "--task_balance", "--class_loss_weight", "0"))


def test_the_environment_must_not_contradict_the_dataset(
    run_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNETV2_MT_NUM_CLS", "5")
    with pytest.raises(DatasetError, match="NNUNETV2_MT_NUM_CLS is 5, but .* has 3 classes"):
        train.run(run_options(tmp_path))
