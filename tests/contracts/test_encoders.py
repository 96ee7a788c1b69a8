"""What every encoder must do, run on each entry of the registry."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, spatial_dims
from nnunet.encoders import ENCODERS
from utils.contracts import Plan

CHANNELS = 2


@pytest.fixture(params=[spec.name for spec in ENCODERS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, plan: Plan) -> nn.Module:
    torch.manual_seed(0)
    style = BlockStyle(dims=spatial_dims(plan.stages))
    return ENCODERS.build(name).build(CHANNELS, plan.stages, style)


def image_of(plan: Plan, batch: int = 2) -> Tensor:
    shape = plan.patch if spatial_dims(plan.stages) == 3 else plan.patch[1:]
    return torch.randn(batch, CHANNELS, *shape, generator=torch.Generator().manual_seed(1))


def expected_shapes(plan: Plan, batch: int) -> list[tuple[int, ...]]:
    shapes, size = [], plan.patch
    for stage in plan.stages:
        size = tuple(edge // step for edge, step in zip(size, stage.stride, strict=True))
        shapes.append((batch, stage.channels, *size[3 - spatial_dims(plan.stages) :]))
    return shapes


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_map_per_stage_of_the_planned_shape(
    name: str, make_plan: Callable[..., Plan], batch: int, *, flat: bool
) -> None:
    plan = make_plan(flat=flat)
    features = build(name, plan)(image_of(plan, batch))
    assert isinstance(features, tuple)
    assert [tuple(maps.shape) for maps in features] == expected_shapes(plan, batch)


def test_every_parameter_exists_at_construction_and_gets_a_gradient(
    name: str, make_plan: Callable[..., Plan]
) -> None:
    encoder = build(name, make_plan())
    before = dict(encoder.named_parameters())
    features = encoder(image_of(make_plan()))
    torch.stack([maps.square().sum() for maps in features]).sum().backward()
    assert dict(encoder.named_parameters()).keys() == before.keys()
    for weight in before.values():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


def test_evaluation_is_deterministic(name: str, make_plan: Callable[..., Plan]) -> None:
    encoder = build(name, make_plan()).eval()
    first, second = encoder(image_of(make_plan())), encoder(image_of(make_plan()))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_cases_of_a_batch_do_not_see_each_other(name: str, make_plan: Callable[..., Plan]) -> None:
    encoder, image = build(name, make_plan()).eval(), image_of(make_plan())
    together, alone = encoder(image), encoder(image[:1])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[:1], one)


def test_bfloat16_autocast_stays_close(name: str, make_plan: Callable[..., Plan]) -> None:
    encoder, image = build(name, make_plan()).eval(), image_of(make_plan())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = encoder(image)
    for maps, exact in zip(reduced, encoder(image), strict=True):
        torch.testing.assert_close(maps.float(), exact, atol=0.2, rtol=0.1)


def test_weights_survive_save_and_load(name: str, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan()
    encoder = build(name, plan).eval()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    other = build(name, plan).eval()
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    image = image_of(plan)
    assert all(torch.equal(one, two) for one, two in zip(encoder(image), other(image), strict=True))
