"""What learns: frozen parts stay as they are, and what learns has a gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nnunet.branches import BRANCHES
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import LossOptions, TrainingOptions
from nnunet.training.learning_parts import check_learning, choose_learning, learning_names
from utils.contracts import Plan
from utils.errors import UserError

MakePlan = Callable[..., Plan]
PARTS = ("encoder", "decoder", "branch", "class_stream")
SUPERVISED = 2  # resolutions, so that the decoder's modes show


def network_of(plan: Plan, training: TrainingOptions, **changes: Any) -> MultiTaskUNet:
    torch.manual_seed(0)
    network = MultiTaskUNet(plan, Architecture(num_outputs=SUPERVISED, **changes))
    choose_learning(network, plan, training)
    return network


def learning_parts(network: MultiTaskUNet) -> set[str]:
    return {name.split(".")[0] for name in learning_names(network)}


def step(network: MultiTaskUNet, plan: Plan, *, with_masks: bool) -> None:
    """One step of gradient descent on whatever the network answers."""
    torch.manual_seed(1)
    guide = torch.randint(0, 3, (2, 1, *plan.patch), dtype=torch.int16)
    output = network(torch.randn(2, 1, *plan.patch), guide if network.takes_guide else None)
    loss = torch.zeros(())
    if output.class_logits is not None:
        loss = loss + output.class_logits.square().sum()
    if with_masks:
        loss = loss + sum(logits.square().mean() for logits in output.label_logits)
    loss.backward()
    torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1).step()


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed_parts(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [
        ("none", {"encoder", "decoder", "branch"}),
        ("encoder", {"decoder", "branch"}),
        ("backbone", {"branch"}),
    ],
)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_frozen_parts_keep_weights_and_statistics(
    make_plan: MakePlan, freeze: Any, learning: set[str], norm: str
) -> None:
    plan = make_plan()
    network = network_of(plan, TrainingOptions(freeze=freeze), branch="simple", norm=norm)
    assert learning_parts(network) == learning
    before = state_of(network)
    step(network, plan, with_masks=True)
    assert changed_parts(before, network) == learning


def test_nothing_of_a_frozen_encoder_is_kept_for_a_gradient(make_plan: MakePlan) -> None:
    plan = make_plan()
    network = network_of(plan, TrainingOptions(freeze="encoder"))
    assert not any(maps.requires_grad for maps in network.encoder(torch.randn(1, 1, *plan.patch)))


def test_the_stream_of_the_class_learns_with_the_branch(make_plan: MakePlan) -> None:
    plan = make_plan()
    network = network_of(
        plan, TrainingOptions(freeze="backbone"), encoder="attention_gated:balance=1", branch="roi_scaled"
    )
    assert learning_parts(network) == {"branch", "class_stream"}
    step(network, plan, with_masks=False)
    assert all(weight.grad is not None for weight in network.parameters() if weight.requires_grad)


CHOICES = (
    *sorted(branch.name for branch in BRANCHES),
    "roi_pooled:detach_roi=false",
    "multi_scale:arms=encoder",
    "multi_scale:arms=decoder,stages=1",
    "bottleneck:detach_features=true",
)


@pytest.mark.parametrize("branch", CHOICES)
@pytest.mark.parametrize("encoder", ["plain", "attention_gated:balance=1"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_for_the_class_alone_exactly_what_it_reaches_learns(
    make_plan: MakePlan, branch: str, encoder: str, freeze: Any
) -> None:
    """A weight that learns without ever having a gradient would make several processes wait for it."""
    plan = make_plan()
    if encoder != "plain" and branch == "multi_scale:arms=decoder,stages=1":
        pytest.skip("the gated stream refuses a branch that reads the decoder alone")
    training = TrainingOptions(learn="classification", freeze=freeze)
    network = network_of(plan, training, branch=branch, encoder=encoder)
    step(network, plan, with_masks=False)
    without = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert set(learning_names(network)).isdisjoint(without)
    assert set(learning_names(network)) | without == {name for name, _ in network.named_parameters()}
    assert "branch" in learning_parts(network)


def test_a_decoder_that_the_branch_does_not_read_rests(make_plan: MakePlan) -> None:
    network = network_of(make_plan(), TrainingOptions(learn="classification"), branch="bottleneck")
    assert learning_parts(network) == {"encoder", "branch"}
    assert not network.decoder.training
    assert network.encoder.training


def test_a_flat_plan_is_asked_with_a_flat_image(make_plan: MakePlan) -> None:
    network = network_of(make_plan(flat=True), TrainingOptions(learn="classification"), branch="bottleneck")
    assert learning_parts(network) == {"encoder", "branch"}


def test_asking_what_the_class_reaches_moves_no_statistic(make_plan: MakePlan) -> None:
    plan = make_plan()
    torch.manual_seed(0)
    fresh = state_of(MultiTaskUNet(plan, Architecture(num_outputs=SUPERVISED, norm="batch")))
    network = network_of(plan, TrainingOptions(learn="classification"), norm="batch")
    assert changed_parts(fresh, network) == set()


JOINT, PLAIN_LOSS = TrainingOptions(), LossOptions()


@pytest.mark.parametrize(
    ("training", "loss", "has_class", "message"),
    [
        (TrainingOptions(learn="classification"), PLAIN_LOSS, False, "--learn classification needs a class"),
        (TrainingOptions(freeze="backbone"), PLAIN_LOSS, False, "--freeze backbone leaves the branch alone"),
        (JOINT, LossOptions(task_balance=True), False, "only one of the two learns"),
        (
            TrainingOptions(learn="classification"),
            LossOptions(task_balance=True),
            True,
            "only one of the two learns",
        ),
        (TrainingOptions(freeze="backbone"), LossOptions(task_balance=True), True, "only one of the two"),
    ],
)
def test_nothing_to_learn_and_nothing_to_weigh_are_refused(
    training: TrainingOptions, loss: LossOptions, *, has_class: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_learning(training, loss, has_class=has_class)


@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_what_makes_sense_passes(freeze: Any) -> None:
    check_learning(TrainingOptions(freeze=freeze), LossOptions(task_balance=True), has_class=True)
    check_learning(TrainingOptions(learn="segmentation"), PLAIN_LOSS, has_class=False)
