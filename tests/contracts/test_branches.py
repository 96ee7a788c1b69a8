"""What every branch must do, run on each entry of the registry and on options that change its shape."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, spatial_dims
from nnunet.branches import BRANCHES
from nnunet.branches.base import Branch, BranchSite
from nnunet.branches.standardise import RunningStandardiser
from nnunet.lesion import Anatomy
from utils.contracts import Plan

CLASSES = 3
REGIONS = ((1, 2), (2,))
VARIANTS = (
    "bottleneck:pool=both,layer_norm=true,hidden=8",
    "memory_query:arms=encoder,stages=0+-1,grid=2+3+2",
    "multi_scale:combine=sum,arms=decoder",
    "multi_scale:combine=mix,pool=max,grid=4,hidden=0",
    "multi_scale:combine=conv,arms=encoder,stages=-2+-1,pool=mean,grid=3",
    "roi_pooled:stages=0",
    "roi_pooled:image=false,shape=false",
    "roi_scaled:stage=1,stride=1,layers=1,sigma=0",
)
LABEL_READERS = ("roi_pooled", "roi_scaled")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What the network hands to a branch."""

    features: tuple[Tensor, ...]
    label_logits: Tensor

    def tensors(self) -> Iterator[Tensor]:
        yield from self.features
        yield self.label_logits


@pytest.fixture(params=[*(spec.name for spec in BRANCHES), *VARIANTS])
def choice(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(choice: str | Branch, plan: Plan) -> nn.Module:
    branch = BRANCHES.build(choice) if isinstance(choice, str) else choice
    anatomy = Anatomy(num_labels=plan.num_labels, regions=plan.regions)
    style = BlockStyle(dims=spatial_dims(plan.stages))
    site = BranchSite(
        stages=plan.stages,
        image_channels=plan.num_channels,
        num_classes=plan.num_classes,
        style=style,
        anatomy=anatomy,
    )
    return branch.build(site)


def inputs_of(plan: Plan, choice: str | Branch, batch: int = 2) -> Inputs:
    branch = BRANCHES.build(choice) if isinstance(choice, str) else choice
    generator = torch.Generator().manual_seed(1)
    dims = spatial_dims(plan.stages)
    features, size = [], plan.patch
    for stage in plan.stages:
        size = tuple(edge // step for edge, step in zip(size, stage.stride, strict=True))
        features.append(torch.randn(batch, stage.channels, *size[3 - dims :], generator=generator))
    if branch.reads_decoder:
        features += [torch.randn(maps.shape, generator=generator) for maps in features[:-1]]
    if branch.reads_image:
        size = plan.patch[3 - dims :]
        features.append(torch.randn(batch, plan.num_channels, *size, generator=generator))
    logits = torch.randn(batch, plan.num_logits, *plan.patch[3 - dims :], generator=generator)
    return Inputs(features=tuple(features), label_logits=logits)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("batch", "num_classes"), [(1, 2), (2, 3), (1, 5)])
def test_a_batch_gives_one_logit_per_case_and_class(
    choice: str, make_plan: Callable[..., Plan], batch: int, num_classes: int, *, flat: bool
) -> None:
    plan = make_plan(flat=flat, num_classes=num_classes)
    given = inputs_of(plan, choice, batch)
    logits = build(choice, plan)(given.features, given.label_logits)
    assert (logits.shape, logits.dtype) == ((batch, num_classes), torch.float32)


def test_every_parameter_exists_at_construction_and_gets_a_gradient(
    choice: str, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(num_classes=CLASSES)
    branch, given = build(choice, plan), inputs_of(plan, choice)
    before = dict(branch.named_parameters())
    branch(given.features, given.label_logits).square().sum().backward()
    assert dict(branch.named_parameters()).keys() == before.keys()
    for name, weight in before.items():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_the_class_loss_reaches_a_feature_map_but_never_the_label_logits(
    choice: str, make_plan: Callable[..., Plan]
) -> None:
    given = inputs_of(make_plan(), choice)
    for tensor in given.tensors():
        tensor.requires_grad_()
    build(choice, make_plan())(given.features, given.label_logits).sum().backward()
    assert any(maps.grad is not None and maps.grad.any() for maps in given.features)
    assert given.label_logits.grad is None


def test_detached_features_stop_the_class_loss(choice: str, make_plan: Callable[..., Plan]) -> None:
    branch = replace(BRANCHES.build(choice), detach_features=True)
    given = inputs_of(make_plan(), branch)
    for tensor in given.tensors():
        tensor.requires_grad_()
    build(branch, make_plan())(given.features, given.label_logits).sum().backward()
    assert all(tensor.grad is None for tensor in given.tensors())


def test_of_the_encoder_nothing_below_its_depth_is_read(choice: str, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    num_stages = len(plan.stages)
    depth = BRANCHES.build(choice).depth(num_stages)
    given = inputs_of(plan, choice)
    for maps in given.features:
        maps.requires_grad_()
    build(choice, plan)(given.features, given.label_logits).sum().backward()
    read = [stage for stage in range(num_stages) if given.features[stage].grad is not None]
    assert max(read, default=-1) == depth - 1


def test_evaluation_is_deterministic_and_blind_to_the_target(
    choice: str, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan()
    branch, given = build(choice, plan).eval(), inputs_of(plan, choice)
    guide = torch.full((2, 1, *plan.patch), 2, dtype=torch.int16)
    alone = branch(given.features, given.label_logits)
    assert torch.equal(alone, branch(given.features, given.label_logits, guide))


def test_cases_of_a_batch_do_not_see_each_other(choice: str, make_plan: Callable[..., Plan]) -> None:
    branch, given = build(choice, make_plan()).eval(), inputs_of(make_plan(), choice)
    alone = branch(tuple(maps[:1] for maps in given.features), given.label_logits[:1])
    torch.testing.assert_close(branch(given.features, given.label_logits)[:1], alone)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_the_logits_are_single_precision_and_the_same(
    choice: str, make_plan: Callable[..., Plan], half: torch.dtype
) -> None:
    branch, given = build(choice, make_plan()).eval(), inputs_of(make_plan(), choice)
    halves = tuple(maps.to(half) for maps in given.features)
    with torch.autocast("cpu", dtype=half):
        logits = branch(halves, given.label_logits.to(half))
    assert logits.dtype == torch.float32
    exact = branch(tuple(maps.float() for maps in halves), given.label_logits.to(half).float())
    torch.testing.assert_close(logits, exact)


def test_sums_beyond_the_range_of_half_precision_stay_finite(
    choice: str, make_plan: Callable[..., Plan]
) -> None:
    branch, given = build(choice, make_plan()).eval(), inputs_of(make_plan(), choice)
    large = tuple(maps.clamp(-3, 3).mul(2e4).half() for maps in given.features)
    with torch.autocast("cpu", dtype=torch.float16):
        assert branch(large, given.label_logits.half()).isfinite().all()


@pytest.mark.parametrize("regions", [(), REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("certain", [-80.0, 80.0], ids=["nothing predicted", "all predicted"])
@pytest.mark.parametrize("channel", [0, 1])
def test_certain_predictions_give_finite_logits_and_gradients(
    choice: str,
    make_plan: Callable[..., Plan],
    regions: tuple[tuple[int, ...], ...],
    certain: float,
    channel: int,
) -> None:
    plan = make_plan(regions=regions)
    branch, given = build(choice, plan), inputs_of(plan, choice)
    label_logits = torch.full_like(given.label_logits, -80.0)
    label_logits[:, channel] = certain
    logits = branch(given.features, label_logits)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in branch.parameters())


def test_weights_survive_save_and_load(choice: str, make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan, given = make_plan(), inputs_of(make_plan(), choice)
    branch = build(choice, plan).eval()
    torch.save(branch.state_dict(), tmp_path / "branch.pt")
    other = build(choice, plan).eval()
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(torch.load(tmp_path / "branch.pt", weights_only=True))
    expected = branch(given.features, given.label_logits)
    assert torch.equal(other(given.features, given.label_logits), expected)


def test_no_layer_normalises_by_the_batch(choice: str, make_plan: Callable[..., Plan]) -> None:
    keepers = [
        module for module in build(choice, make_plan()).modules() if list(module.buffers(recurse=False))
    ]
    assert all(isinstance(module, RunningStandardiser) for module in keepers)


def test_it_is_captured_as_one_graph(choice: str, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    branch, given = build(choice, plan).eval(), inputs_of(plan, choice)
    torch.compiler.reset()
    captured = torch.compile(branch, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        captured(given.features, given.label_logits), branch(given.features, given.label_logits)
    )


@pytest.mark.parametrize("name", LABEL_READERS)
@pytest.mark.parametrize("regions", [(), REGIONS], ids=["labels", "regions"])
def test_the_class_loss_can_shape_the_mask(
    name: str, make_plan: Callable[..., Plan], regions: tuple[tuple[int, ...], ...]
) -> None:
    plan = make_plan(regions=regions)
    branch, given = build(f"{name}:detach_roi=false", plan), inputs_of(plan, name)
    given.label_logits.requires_grad_()
    branch(given.features, given.label_logits).square().sum().backward()
    assert given.label_logits.grad is not None
    assert given.label_logits.grad.isfinite().all()
    assert given.label_logits.grad.any()


@pytest.mark.parametrize("name", LABEL_READERS)
@pytest.mark.parametrize("regions", [(), REGIONS], ids=["labels", "regions"])
def test_in_training_the_target_can_stand_in_for_the_prediction(
    name: str, make_plan: Callable[..., Plan], regions: tuple[tuple[int, ...], ...]
) -> None:
    plan = make_plan(regions=regions)
    branch = build(f"{name}:target_share=1,dropout=0", plan)
    for module in branch.modules():
        if isinstance(module, RunningStandardiser):
            module.eval()  # its statistics would move between the calls
    given = inputs_of(plan, name)
    guide = torch.zeros(2, len(regions) or 1, *plan.patch, dtype=torch.int16)
    guide[0, -1, :2, :8, :8] = 1 if regions else 2
    predicted = branch(given.features, given.label_logits)
    guided = branch(given.features, given.label_logits, guide)
    assert not torch.allclose(guided[0], predicted[0])
    torch.testing.assert_close(guided[1], predicted[1])  # its target shows no lesion
