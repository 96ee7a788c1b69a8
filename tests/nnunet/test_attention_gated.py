"""The gated class stream, and the balance of two gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet.blocks import BlockStyle
from nnunet.encoders.attention_gated import AttentionGated, BalancedFork, Gate
from nnunet.network import Architecture, MultiTaskUNet
from utils.contracts import Plan
from utils.errors import UserError

STYLE = BlockStyle()


def features_of(plan: Plan) -> tuple[Tensor, ...]:
    sizes = ((4, 16, 16), (4, 8, 8), (2, 4, 4))
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, stage.channels, *size, generator=generator)
        for stage, size in zip(plan.stages, sizes, strict=True)
    )


def stream_of(plan: Plan, **options: bool | float) -> nn.Module:
    torch.manual_seed(0)
    return replace(AttentionGated(), **options).build_class_stream(plan.stages, STYLE)


def test_a_gate_weighs_every_voxel_by_both_streams() -> None:
    gate = Gate(2, STYLE)
    maps, beside = torch.randn(1, 2, 2, 2, 2), torch.randn(1, 2, 2, 2, 2)
    assert isinstance(gate.weigh, nn.Conv3d)
    assert gate.weigh.bias is not None
    mixed = torch.einsum("bcdhw,c->bdhw", F.leaky_relu(maps + beside, 0.01), gate.weigh.weight[0, :, 0, 0, 0])
    expected = maps * torch.sigmoid(mixed + gate.weigh.bias).unsqueeze(1)
    torch.testing.assert_close(gate(maps, beside), expected)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_segmentation_is_read_and_not_changed(make_plan: Callable[..., Plan], balance: float) -> None:
    plan = make_plan()
    features = tuple(maps.requires_grad_() for maps in features_of(plan))
    passed, gated = stream_of(plan, balance=balance)(features)
    assert all(torch.equal(one, other) for one, other in zip(passed, features, strict=True))
    assert [maps.shape for maps in gated] == [maps.shape for maps in features]
    assert not any(torch.allclose(one, other) for one, other in zip(gated, features, strict=True))


def test_it_goes_only_as_deep_as_the_branch_needs(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    stream = AttentionGated().build_class_stream(plan.stages[:2], STYLE)
    features = features_of(plan)
    _, seen = stream(features)
    assert len(seen) == 3
    assert seen[2] is features[2]


@pytest.mark.parametrize("detach", [False, True])
def test_the_class_gradient_enters_the_encoder_unless_detached(
    make_plan: Callable[..., Plan], *, detach: bool
) -> None:
    features = tuple(maps.requires_grad_() for maps in features_of(make_plan()))
    _, gated = stream_of(make_plan(), detach=detach)(features)
    torch.stack([maps.sum() for maps in gated]).sum().backward()
    assert all((maps.grad is None) == detach for maps in features)


def fork_gradients(*, balance: float, scale: float, class_weight: float = 0.3) -> list[Tensor]:
    """Gradients of two leaves behind a fork, for a segmentation and a class loss times a loss scale."""
    leaves = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)]
    one, two, three, four = BalancedFork.apply(balance, *leaves)
    segmentation = (one.square().sum() + two.sum()) / 7
    classification = class_weight * (three[0] + 5 * four.sum())
    (scale * (segmentation + classification)).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_the_class_gradient_gets_the_norm_of_the_segmentations() -> None:
    first, second = fork_gradients(balance=1.0, scale=1.0)
    segmentation = torch.tensor([6.0, 8.0, 1.0]) / 7
    classification = torch.tensor([1.0, 0.0, 5.0])
    expected = segmentation + classification * segmentation.norm() / classification.norm()
    torch.testing.assert_close(torch.cat([first, second]), expected)


def test_half_the_balance_gives_half_the_norm() -> None:
    full, half, plain = (torch.cat(fork_gradients(balance=b, scale=1.0)) for b in (1.0, 0.5, 1e-9))
    torch.testing.assert_close(half - plain, (full - plain) / 2)


@pytest.mark.parametrize("class_weight", [0.01, 100.0])
def test_neither_loss_scale_nor_loss_weight_change_the_balance(class_weight: float) -> None:
    expected = fork_gradients(balance=1.0, scale=1.0)
    found = fork_gradients(balance=1.0, scale=65536.0, class_weight=class_weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / 65536, other)


def test_a_task_without_gradient_leaves_the_other_alone() -> None:
    for used in (0, 1):
        leaf = torch.tensor([3.0, 4.0], requires_grad=True)
        copies = BalancedFork.apply(1.0, leaf)
        copies[used].square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [6, 8]


@pytest.mark.parametrize("overflown", [0, 1])
def test_an_overflow_stays_visible_to_the_loss_scaler(overflown: int) -> None:
    leaf = torch.ones(2, requires_grad=True)
    copies = BalancedFork.apply(1.0, leaf)
    (copies[overflown] * torch.tensor([float("inf"), 1.0]) + copies[1 - overflown]).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.isfinite().all()


def test_half_precision_gradients_keep_their_type_and_do_not_overflow() -> None:
    leaf = torch.ones(4096, dtype=torch.float16, requires_grad=True)
    one, two = BalancedFork.apply(1.0, leaf)
    (3000 * one.float() + 1000 * two.float()).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float16
    assert leaf.grad.unique().tolist() == [6000]  # their norm is beyond float16


def test_the_segmentation_of_a_network_is_that_of_its_body(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    image = torch.randn(1, 1, *plan.patch, generator=torch.Generator().manual_seed(0))
    outputs = []
    for encoder in ("plain", "attention_gated"):
        torch.manual_seed(0)
        network = MultiTaskUNet(plan, Architecture(encoder=encoder, branch="none")).eval()
        outputs.append(network(image).label_logits[0])
    assert torch.equal(*outputs)


def test_without_a_branch_there_is_no_class_stream(make_plan: Callable[..., Plan]) -> None:
    network = MultiTaskUNet(make_plan(), Architecture(encoder="attention_gated", branch="none"))
    assert network.class_stream is None


def test_the_body_can_be_residual(make_plan: Callable[..., Plan]) -> None:
    bodies = [AttentionGated(body=body).build(1, make_plan().stages, STYLE) for body in ("plain", "residual")]
    plain, residual = (set(body.state_dict()) for body in bodies)
    assert plain != residual


@pytest.mark.parametrize(
    ("encoder", "branch", "message"),
    [
        ("attention_gated:body=dense", "simple", "body should be one of plain, residual, got 'dense'"),
        ("attention_gated:balance=-1", "simple", "balance should be at least 0, got -1"),
        ("attention_gated", "multi_scale:arms=decoder,stages=0", "this branch reads the decoder alone"),
    ],
)
def test_what_cannot_be_built_is_refused(
    make_plan: Callable[..., Plan], encoder: str, branch: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MultiTaskUNet(make_plan(), Architecture(encoder=encoder, branch=branch))
