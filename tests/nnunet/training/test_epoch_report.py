"""The line that a person reads after an epoch."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, final

import pytest
import torch

from nnunet.options import LossOptions, OptimiserOptions, TrainingOptions
from nnunet.training.epoch_report import (
    COLLAPSE_ADVICE,
    RECOVERED,
    EpochReport,
    epoch_line,
    learning_rates,
)
from utils.contracts import Plan
from utils.options import flatten
from utils.run_log import RunLog

if TYPE_CHECKING:
    from tests.nnunet.training.conftest import TinyRun

TRAINING = {
    "train/loss": 0.5,
    "train/loss_segmentation": 0.35,
    "train/loss_class": 0.5,
    "speed/patches_per_s": 12.34,
    "speed/waiting_percent": 1.26,
    "epoch_s": 9.87,
}
VALIDATION = {"val/loss": 0.4, "val/dsc": 0.7, "val/dsc_1": 0.91, "val/dsc_2": 0.5}
CLASSES = {"val/macro_f1": 0.6667, "val/macro_f1_constant": 0.4}


def test_it_names_every_label_and_the_constant_beside_macro_f1(make_plan: Callable[..., Plan]) -> None:
    assert epoch_line(3, 10, {**TRAINING, **VALIDATION, **CLASSES}, make_plan()) == (
        "epoch 3/10 | loss 0.500 (seg 0.350, class 0.500) | val loss 0.400 | "
        "Dice organ 0.910, lesion 0.500 | macro-F1 0.667 (constant 0.400) | "
        "12.3 patches/s | waiting for data 1.3 % | 9.9 s"
    )


def test_an_epoch_without_validation_has_no_scores(make_plan: Callable[..., Plan]) -> None:
    assert epoch_line(1, 2, TRAINING, make_plan(num_classes=0)) == (
        "epoch 1/2 | loss 0.500 | 12.3 patches/s | waiting for data 1.3 % | 9.9 s"
    )


def test_without_masks_to_validate_on_no_dice_is_said(make_plan: Callable[..., Plan]) -> None:
    metrics = {**TRAINING, "val/loss": 0.4, "val/dsc_1": float("nan"), "val/dsc_2": float("nan"), **CLASSES}
    assert "val loss 0.400 | macro-F1 0.667" in epoch_line(3, 10, metrics, make_plan())


def test_dice_on_the_original_grid_is_said_where_it_chooses_the_epoch(make_plan: Callable[..., Plan]) -> None:
    original = {"val/dsc_original": 0.5, "val/dsc_original_1": 0.6, "val/dsc_original_2": 0.4}
    line = epoch_line(1, 2, {**TRAINING, **VALIDATION, **original}, make_plan(num_classes=0))
    assert "| Dice on the original grid organ 0.600, lesion 0.400 |" in line


def test_regions_are_said_by_their_names(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(regions=((1, 2), (2,)), region_names=("whole", "core"), num_classes=0)
    assert "| Dice whole 0.910, core 0.500 |" in epoch_line(1, 2, {**TRAINING, **VALIDATION}, plan)


def optimiser_of(**rates: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "part": part, "lr": rate}
        for part, rate in rates.items()
    ]
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ({"network": 0.1}, {"learning_rate": 0.1}),
        ({"network": 0.1, "branch": 0.1, "balance": 0.1}, {"learning_rate": 0.1}),
        ({"network": 0.1, "branch": 0.5}, {"learning_rate": 0.1, "learning_rate_head": 0.5}),
        ({"branch": 0.5}, {"learning_rate": 0.5}),
    ],
)
def test_the_rate_of_the_head_is_told_where_it_is_another(
    rates: dict[str, float], told: dict[str, float]
) -> None:
    assert learning_rates(optimiser_of(**rates)) == told


@final
class NoWaiting:
    """A loader that was never waited for."""

    waited_seconds = 0.0


def finished_epoch() -> Any:
    """What a report asks of a trainer."""
    return SimpleNamespace(
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),  # noqa: ARG005
        callback_metrics={"train/loss": 1.0, "train/loss_segmentation": 1.0, "train/loss_class": 1.0},
        optimizers=[optimiser_of(network=0.1)],
        current_epoch=0,
        max_epochs=1,
        is_global_zero=True,
    )


def test_a_collapse_is_told_once_and_so_is_the_recovery(
    tiny_run: "TinyRun", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer = tiny_run.module, finished_epoch()
    assert module.scores is not None
    before = module.scores
    with RunLog(tmp_path / "logs.json") as run_log:
        report = EpochReport(tiny_run.plan, run_log, NoWaiting())
        for reason in ("", "all is class 1", "all is class 1", "", ""):
            module.scores = replace(before, collapse=reason)
            report.on_train_epoch_start(trainer, module)
            report.on_validation_start(trainer, module)
            report.on_train_epoch_end(trainer, module)
    module.scores = before
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("epoch")]
    assert told == [f"Warning: all is class 1. {COLLAPSE_ADVICE}", RECOVERED]
    options = flatten(TrainingOptions).keys() | flatten(LossOptions).keys() | flatten(OptimiserOptions).keys()
    advised = set(re.findall(r"--(\w+)", COLLAPSE_ADVICE))
    assert advised - options == {"batch_size", "balance_classes", "branch", "ckpt_path"}
