"""The next shorter patch of a plan: planning's own step, or that of the stages that the plan has."""

from dataclasses import replace
from math import prod

import pytest

from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planners import PlannerOptions, estimated_memory_gb
from data_preprocessing.planning import plan_experiment
from data_preprocessing.shorter_patch import with_shorter_patch
from data_preprocessing.topology import total_stride
from utils.contracts import Fingerprint, IntensityStats, Plan, Shape, Spacing, Stage

STATS = IntensityStats(mean=0.0, std=1.0, median=0.0, min=0.0, max=1.0, low=0.0, high=1.0)


def planned(
    spacing_mm: Spacing,
    shape: Shape,
    configuration: str = "3d_fullres",
    options: PlannerOptions | None = None,
) -> Plan:
    fingerprint = Fingerprint(
        dataset="made",
        case_ids=tuple(map(str, range(20))),
        spacings_mm=(spacing_mm,) * 20,
        shapes=(shape,) * 20,
        relative_sizes=(1.0,) * 20,
        intensity=(STATS,),
        channel_names=("CT",),
        label_names=("background", "organ"),
        class_names=(),
    )
    return plan_experiment(fingerprint, configuration=configuration, options=options or PlannerOptions())


CT = ((2.0, 0.78, 0.78), (228, 513, 513))
MR = ((5.0, 1.56, 1.56), (18, 237, 208))


@pytest.mark.parametrize("data", [CT, MR])
@pytest.mark.parametrize("planner", ["default", "resenc_m"])
def test_a_shorter_patch_is_that_of_a_plan_for_less_memory(data: tuple[Spacing, Shape], planner: str) -> None:
    options = PlannerOptions(planner=planner)  # type: ignore[arg-type]
    plan = planned(*data, options=options)
    shorter = with_shorter_patch(plan)
    assert shorter is not None
    # A little less than the plan needs for its smallest batch, so that planning takes exactly one step more.
    memory_gb = 0.999 * estimated_memory_gb(plan, 2, encoder=plan.encoder)
    for_less = planned(*data, options=replace(options, gpu_memory_target_gb=memory_gb))
    assert (shorter.patch, shorter.stages) == (for_less.patch, for_less.stages)
    assert prod(shorter.patch) < prod(plan.patch)


@pytest.mark.parametrize(("data", "configuration"), [(CT, "3d_fullres"), (MR, "3d_fullres"), (CT, "2d")])
def test_every_shorter_patch_makes_a_plan_that_holds(data: tuple[Spacing, Shape], configuration: str) -> None:
    plan: Plan | None = planned(*data, configuration=configuration)
    count = 0
    while (shorter := with_shorter_patch(plan)) is not None:
        validate_plan(shorter)
        assert prod(shorter.patch) < prod(plan.patch)
        plan, count = shorter, count + 1
    assert count > 5
    assert len(plan.stages) >= 2


def test_channels_and_blocks_of_a_level_stay() -> None:
    plan = planned(*CT)
    stages = tuple(
        replace(stage, channels=7 + level, num_blocks=1 + level) for level, stage in enumerate(plan.stages)
    )
    shorter = with_shorter_patch(replace(plan, stages=stages))
    assert shorter is not None
    assert [stage.channels for stage in shorter.stages] == [7 + level for level in range(len(shorter.stages))]
    assert [stage.num_blocks for stage in shorter.stages] == [
        1 + level for level in range(len(shorter.stages))
    ]


@pytest.mark.parametrize("flat", [False, True])
def test_stages_of_another_rule_stay_and_divide_the_patch(flat: bool) -> None:  # noqa: FBT001
    halving = (1, 2, 2) if flat else (2, 2, 2)
    stages = (
        Stage(channels=4, kernel=(1, 5, 5), stride=(1, 1, 1)),
        Stage(channels=8, kernel=(1, 5, 5), stride=halving),
        Stage(channels=8, kernel=(1, 5, 5), stride=halving),
    )
    patch, median = ((1, 64, 48), (30, 60, 60)) if flat else ((32, 64, 48), (30, 60, 60))
    plan: Plan | None = replace(
        planned(*MR, configuration="2d" if flat else "3d_fullres"),
        patch=patch,
        median_shape=median,
        stages=stages,
    )
    patches = [plan.patch]
    while (plan := with_shorter_patch(plan)) is not None:
        assert plan.stages == stages
        patches.append(plan.patch)
    # The axis that covers most of the median case first; 32 of 30 voxels and 64 of 60 tie, the last wins.
    assert patches[1:3] == ([(1, 60, 48), (1, 56, 48)] if flat else [(32, 60, 48), (28, 60, 48)])
    assert patches[-1] == ((1, 16, 16) if flat else (16, 16, 16))
    assert all(
        edge % step == 0 for shape in patches for edge, step in zip(shape, total_stride(stages), strict=True)
    )


def test_the_estimate_is_the_planners_own_share_of_its_reference() -> None:
    plan = planned(*CT)
    # nnU-Net shrinks until two patches need at most the 8 GB that 560 million elements of one case stand for.
    two = estimated_memory_gb(plan, 2, encoder="plain")
    assert 6 < two <= 8
    assert estimated_memory_gb(plan, 4, encoder="plain") == pytest.approx(2 * two)
    assert estimated_memory_gb(plan, 2, encoder="residual") > two
    assert estimated_memory_gb(replace(plan, planner="of a friend"), 2, encoder="plain") == two
    large = planned(*CT, options=PlannerOptions(planner="resenc_l"))
    assert 18 < estimated_memory_gb(large, 2, encoder="residual") <= 24
