"""What every branch must do, run on each entry of the registry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, spatial_dims
from nnunet.branches import BRANCHES
from utils.contracts import Plan

CLASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What the network hands to a branch."""

    features: tuple[Tensor, ...]
    label_logits: Tensor


@pytest.fixture(params=[spec.name for spec in BRANCHES])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, plan: Plan) -> nn.Module:
    torch.manual_seed(0)
    style = BlockStyle(dims=spatial_dims(plan.stages))
    return BRANCHES.build(name).build(plan.stages, CLASSES, style)


def inputs_of(plan: Plan, batch: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    dims = spatial_dims(plan.stages)
    features, size = [], plan.patch
    for stage in plan.stages:
        size = tuple(edge // step for edge, step in zip(size, stage.stride, strict=True))
        features.append(torch.randn(batch, stage.channels, *size[3 - dims :], generator=generator))
    logits = torch.randn(batch, plan.num_labels, *plan.patch[3 - dims :], generator=generator)
    return Inputs(features=tuple(features), label_logits=logits)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_gives_one_logit_per_case_and_class(
    name: str, make_plan: Callable[..., Plan], batch: int, *, flat: bool
) -> None:
    plan = make_plan(flat=flat)
    given = inputs_of(plan, batch)
    assert build(name, plan)(given.features, given.label_logits).shape == (batch, CLASSES)


def test_every_parameter_exists_at_construction_and_gets_a_gradient(
    name: str, make_plan: Callable[..., Plan]
) -> None:
    branch, given = build(name, make_plan()), inputs_of(make_plan())
    before = dict(branch.named_parameters())
    branch(given.features, given.label_logits).square().sum().backward()
    assert dict(branch.named_parameters()).keys() == before.keys()
    for weight in before.values():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.any()


def test_the_class_loss_reaches_a_feature_map_but_never_the_label_logits(
    name: str, make_plan: Callable[..., Plan]
) -> None:
    given = inputs_of(make_plan())
    for tensor in (*given.features, given.label_logits):
        tensor.requires_grad_()
    build(name, make_plan())(given.features, given.label_logits).sum().backward()
    assert any(maps.grad is not None and maps.grad.any() for maps in given.features)
    assert given.label_logits.grad is None


def test_evaluation_is_deterministic(name: str, make_plan: Callable[..., Plan]) -> None:
    branch, given = build(name, make_plan()).eval(), inputs_of(make_plan())
    first, second = (branch(given.features, given.label_logits) for _ in range(2))
    assert torch.equal(first, second)


def test_cases_of_a_batch_do_not_see_each_other(name: str, make_plan: Callable[..., Plan]) -> None:
    branch, given = build(name, make_plan()).eval(), inputs_of(make_plan())
    alone = branch(tuple(maps[:1] for maps in given.features), given.label_logits[:1])
    torch.testing.assert_close(branch(given.features, given.label_logits)[:1], alone)


def test_under_autocast_the_logits_are_single_precision_and_the_same(
    name: str, make_plan: Callable[..., Plan]
) -> None:
    branch, given = build(name, make_plan()).eval(), inputs_of(make_plan())
    halves = tuple(maps.bfloat16() for maps in given.features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = branch(halves, given.label_logits.bfloat16())
    assert logits.dtype == torch.float32
    exact = branch(tuple(maps.float() for maps in halves), given.label_logits.bfloat16().float())
    torch.testing.assert_close(logits, exact)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_patch_of_a_single_predicted_label_gives_finite_logits_and_gradients(
    name: str, make_plan: Callable[..., Plan], label: int
) -> None:
    branch, given = build(name, make_plan()), inputs_of(make_plan())
    certain = torch.zeros_like(given.label_logits)
    certain[:, label] = 1
    logits = branch(given.features, certain)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in branch.parameters())


def test_weights_survive_save_and_load(name: str, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan, given = make_plan(), inputs_of(make_plan())
    branch = build(name, plan).eval()
    torch.save(branch.state_dict(), tmp_path / "branch.pt")
    other = build(name, plan).eval()
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(torch.load(tmp_path / "branch.pt", weights_only=True))
    expected = branch(given.features, given.label_logits)
    assert torch.equal(other(given.features, given.label_logits), expected)


def test_no_layer_keeps_statistics_of_the_batch(name: str, make_plan: Callable[..., Plan]) -> None:
    assert list(build(name, make_plan()).buffers()) == []
