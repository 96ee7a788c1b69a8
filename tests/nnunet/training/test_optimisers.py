"""Optimisers and the learning rate over a run, by pencil."""

import math

import pytest
import torch
from torch.nn import Parameter

from nnunet.options import OptimiserOptions
from nnunet.training.optimisers import (
    ParameterGroup,
    Schedule,
    build_optimiser,
    build_schedule,
    set_learning_rate,
)
from utils.errors import UserError


def optimiser_of(options: OptimiserOptions) -> torch.optim.Optimizer:
    group = ParameterGroup(part="network", parameters=(Parameter(torch.zeros(1)),))
    return build_optimiser([group], options, fused=False)


def test_adam_is_adamw_with_its_own_defaults() -> None:
    optimiser = optimiser_of(OptimiserOptions())
    assert isinstance(optimiser, torch.optim.AdamW)
    assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (8e-4, 1e-4)


def test_sgd_has_nesterov_momentum_and_its_own_defaults() -> None:
    optimiser = optimiser_of(OptimiserOptions(optimizer="sgd"))
    assert isinstance(optimiser, torch.optim.SGD)
    group = optimiser.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]) == (
        1e-2,
        3e-5,
        0.99,
        True,
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_given_rates_win_even_where_they_are_zero(kind: str) -> None:
    options = OptimiserOptions(
        optimizer="sgd" if kind == "sgd" else "adam", learning_rate=0.5, weight_decay=0
    )
    group = optimiser_of(options).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0)


@pytest.mark.parametrize(
    ("kind", "progress", "factor"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 1.0, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1 / 3, 0.75),
        ("cosine", 1.0, 0.0),
        ("poly", 0.0, 1.0),
        ("poly", 0.5, 0.5**0.9),
        ("poly", 1.0, 0.0),
    ],
)
def test_the_factor_at_a_progress(kind: str, progress: float, factor: float) -> None:
    assert Schedule(kind=kind, warmup_steps=0).factor(progress, 7) == pytest.approx(factor)


@pytest.mark.parametrize("kind", ["cosine", "poly"])
def test_a_run_that_takes_longer_than_planned_stays_at_the_end(kind: str) -> None:
    assert Schedule(kind=kind, warmup_steps=0).factor(1.7, 100) == pytest.approx(0)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (90, 1.0)])
def test_warm_up_rises_linearly_from_above_zero(step: int, factor: float) -> None:
    assert Schedule(kind="constant", warmup_steps=3).factor(0.0, step) == pytest.approx(factor)


def test_warm_up_multiplies_the_decay() -> None:
    assert Schedule(kind="cosine", warmup_steps=1).factor(0.5, 0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        (OptimiserOptions(), Schedule(kind="constant", warmup_steps=0)),
        (OptimiserOptions(scheduler=True), Schedule(kind="cosine", warmup_steps=250)),
        (OptimiserOptions(scheduler=True, warmup_steps=0), Schedule(kind="cosine", warmup_steps=0)),
        (OptimiserOptions(schedule="poly", warmup_steps=7), Schedule(kind="poly", warmup_steps=7)),
    ],
)
def test_the_scheduler_is_a_warm_up_and_a_cosine(options: OptimiserOptions, schedule: Schedule) -> None:
    assert build_schedule(options) == schedule


def test_two_schedules_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="--schedule poly is another decay"):
        build_schedule(OptimiserOptions(scheduler=True, schedule="poly"))


def test_groups_keep_their_ratio() -> None:
    optimiser = torch.optim.SGD(
        [
            {"params": [Parameter(torch.zeros(1))], "peak_lr": 0.1},
            {"params": [Parameter(torch.zeros(1))], "peak_lr": 0.3},
        ],
        lr=9.0,
    )
    for factor in (1.0, 0.5, math.pi / 10):
        set_learning_rate(optimiser, factor)
        first, second = (group["lr"] for group in optimiser.param_groups)
        assert (first, second) == pytest.approx((0.1 * factor, 0.3 * factor))
