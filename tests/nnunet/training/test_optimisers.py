"""Optimisers and the learning rate over a run, by pencil."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.nn import Parameter

from nnunet.label_coding import LabelCoding
from nnunet.losses.balancing import TaskBalance
from nnunet.losses.classification import CrossEntropy
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import OptimiserOptions
from nnunet.training.optimisers import (
    ParameterGroup,
    Schedule,
    build_optimiser,
    build_schedule,
    optimiser_name,
    parameter_groups,
    regrouped,
    reset_rates,
    set_learning_rate,
)
from utils.contracts import Plan
from utils.errors import DatasetError, UserError


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


# --- groups ---------------------------------------------------------------------------------------------


@pytest.fixture
def parts(make_plan: Callable[..., Plan]) -> tuple[MultiTaskUNet, MultiTaskLoss]:
    """A network whose branch has a stream of its own, and a loss with learned weights."""
    loss = MultiTaskLoss(
        CrossEntropy().build((1, 1)),
        SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
        class_loss_weight=0.3,
        lesion_free_weight=0.25,
        balance=TaskBalance((1.0, 0.3)),
    )
    return MultiTaskUNet(make_plan(), Architecture(encoder="attention_gated", branch="simple")), loss


def test_every_weight_that_learns_is_in_one_group_in_the_networks_order(
    parts: tuple[MultiTaskUNet, MultiTaskLoss],
) -> None:
    network, loss = parts
    groups = parameter_groups(network, loss)
    assert [group.part for group in groups] == ["network", "branch", "balance"]
    placed = [weight for group in groups for weight in group.parameters]
    expected = [*network.parameters(), *loss.parameters()]
    assert [id(weight) for weight in placed] == [id(weight) for weight in expected]


def test_frozen_weights_are_in_no_group(parts: tuple[MultiTaskUNet, MultiTaskLoss]) -> None:
    network, loss = parts
    for weight in (*network.encoder.parameters(), *network.decoder.parameters()):
        weight.requires_grad = False
    assert [group.part for group in parameter_groups(network, loss)] == ["branch", "balance"]


def test_the_head_has_a_rate_of_its_own_and_task_weights_no_decay(
    parts: tuple[MultiTaskUNet, MultiTaskLoss],
) -> None:
    options = OptimiserOptions(learning_rate=0.2, head_learning_rate=0.6, weight_decay=0.1)
    optimiser = build_optimiser(parameter_groups(*parts), options, fused=False)
    for factor in (1.0, 0.5):
        set_learning_rate(optimiser, factor)
        rates = {group["part"]: group["lr"] for group in optimiser.param_groups}
        expected = {"network": 0.2 * factor, "branch": 0.6 * factor, "balance": 0.2 * factor}
        assert rates == pytest.approx(expected)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.1, 0.0]


def test_new_rates_are_set_in_their_own_groups(parts: tuple[MultiTaskUNet, MultiTaskLoss]) -> None:
    optimiser = build_optimiser(parameter_groups(*parts), OptimiserOptions(), fused=False)
    reset_rates(optimiser, OptimiserOptions(learning_rate=0.2, head_learning_rate=0.6, weight_decay=0.1))
    assert [group["peak_lr"] for group in optimiser.param_groups] == [0.2, 0.6, 0.2]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_new_momentum_is_set(momentum: float) -> None:
    optimiser = optimiser_of(OptimiserOptions(optimizer="sgd"))
    reset_rates(optimiser, OptimiserOptions(optimizer="sgd", momentum=momentum))
    (group,) = optimiser.param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, momentum > 0)


def test_adam_gets_no_momentum() -> None:
    optimiser = optimiser_of(OptimiserOptions())
    reset_rates(optimiser, OptimiserOptions(momentum=0.5))
    assert "momentum" not in optimiser.param_groups[0]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_saved_state_tells_its_optimiser(name: Literal["adam", "sgd"]) -> None:
    assert optimiser_name(optimiser_of(OptimiserOptions(optimizer=name)).state_dict()) == name


def test_a_state_of_one_group_continues_in_several(parts: tuple[MultiTaskUNet, MultiTaskLoss]) -> None:
    network, loss = parts
    loss.balance = None
    older = torch.optim.AdamW([{"params": list(network.parameters()), "peak_lr": 0.1}], lr=0.1)
    sum(weight.square().sum() for weight in network.parameters()).backward()
    older.step()
    groups = parameter_groups(network, loss)
    optimiser = build_optimiser(groups, OptimiserOptions(), fused=False)
    optimiser.load_state_dict(regrouped(older.state_dict(), groups))
    assert [group["part"] for group in optimiser.param_groups] == ["network", "branch"]
    for weight in network.parameters():
        assert torch.equal(optimiser.state[weight]["exp_avg"], older.state[weight]["exp_avg"])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_state_gets_the_order_in_memory_of_its_weight(
    parts: tuple[MultiTaskUNet, MultiTaskLoss], name: Literal["adam", "sgd"]
) -> None:
    network, loss = parts
    groups, options = parameter_groups(network, loss), OptimiserOptions(optimizer=name)
    saved = build_optimiser(groups, options, fused=False)
    weights = [weight for group in groups for weight in group.parameters]
    for place, weight in enumerate(weights):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
    saved.step()
    state = saved.state_dict()
    network.to(memory_format=torch.channels_last_3d)
    other = regrouped(state, groups)["state"]
    kept = "exp_avg" if name == "adam" else "momentum_buffer"
    assert any(not weight.is_contiguous() for weight in weights)
    for place, weight in enumerate(weights):
        assert other[place][kept].stride() == weight.stride()
        assert torch.equal(other[place][kept], state["state"][place][kept])


def test_a_state_of_other_weights_is_refused(parts: tuple[MultiTaskUNet, MultiTaskLoss]) -> None:
    older = torch.optim.SGD([Parameter(torch.zeros(1))], lr=0.1).state_dict()
    with pytest.raises(DatasetError, match="moves 1 weights"):
        regrouped(older, parameter_groups(*parts))
