"""A training whose numbers are no longer finite: it stops, says why, and leaves what it had before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet.training.checkpoint import read_checkpoint
from scripts import train
from scripts.run_options import RunOptions
from utils.errors import UserError
from utils.run_log import read_log

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]
TOO_FAST = ["--optimizer", "sgd", "--learning_rate", "1e30", "--fit_classifier", "none"]
ADVICE = "lower --learning_rate, --gradient_clip_val 12, or a run without --amp"


def epochs_of(results: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return [line["data"] for line in lines if len(line["step"]) == 1]


@pytest.mark.parametrize("patience", ["0", "100"])
def test_a_diverged_run_stops_with_one_line_and_keeps_nothing(
    run_options: Options, tmp_path: Path, patience: str
) -> None:
    flags = ["--epochs", "5", "--min_epochs", "5", "--patience", patience, *TOO_FAST]
    with pytest.raises(UserError, match="In epoch 1 the validation loss is nan") as told:
        train.run(run_options(tmp_path, *flags))
    assert ADVICE in str(told.value)
    assert "\n" not in str(told.value)
    (epoch,) = epochs_of(tmp_path)
    assert (epoch["val/loss"], epoch["val/loss_isnan"], epoch["val/score_isinf"]) == (None, True, True)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_epoch_that_is_not_validated_is_looked_at_too(run_options: Options, tmp_path: Path) -> None:
    flags = ["--epochs", "9", "--val_every", "9", "--no_save_ckpt", *TOO_FAST]
    with pytest.raises(UserError, match="In epoch 1 the training loss is nan"):
        train.run(run_options(tmp_path, *flags))
    assert len(epochs_of(tmp_path)) == 1


def test_the_checkpoints_before_a_divergence_stay(run_options: Options, tmp_path: Path) -> None:
    quick = ["--optimizer", "sgd", "--fit_classifier", "none", "--max_epochs", "1"]
    best = train.run(run_options(tmp_path, *quick))
    with pytest.raises(UserError, match="In epoch 2 "):
        train.run(run_options(tmp_path, "--resume_training", "--epochs", "3", *TOO_FAST))
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert sorted(tmp_path.rglob("*.ckpt")) == [best, last]
    assert all(torch.isfinite(value).all() for value in read_checkpoint(last)["state_dict"].values())
