"""The gated class stream."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet.blocks import BlockStyle
from nnunet.encoders.attention_gated import AttentionGated, Gate
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


def stream_of(plan: Plan, **options: bool) -> nn.Module:
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


def test_the_segmentation_is_read_and_not_changed(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    features = features_of(plan)
    gated = stream_of(plan)(features)
    assert all(torch.equal(one, other) for one, other in zip(features, features_of(plan), strict=True))
    assert [maps.shape for maps in gated] == [maps.shape for maps in features]
    assert not any(torch.allclose(one, other) for one, other in zip(gated, features, strict=True))


def test_it_goes_only_as_deep_as_the_branch_needs(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    stream = AttentionGated().build_class_stream(plan.stages[:2], STYLE)
    features = features_of(plan)
    seen = stream(features)
    assert len(seen) == 3
    assert seen[2] is features[2]


@pytest.mark.parametrize("detach", [False, True])
def test_the_class_gradient_enters_the_encoder_unless_detached(
    make_plan: Callable[..., Plan], *, detach: bool
) -> None:
    features = tuple(maps.requires_grad_() for maps in features_of(make_plan()))
    gated = stream_of(make_plan(), detach=detach)(features)
    torch.stack([maps.sum() for maps in gated]).sum().backward()
    assert all((maps.grad is None) == detach for maps in features)


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
