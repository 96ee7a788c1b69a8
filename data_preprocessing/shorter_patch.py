"""The next shorter patch of a plan, as planning shortens one that needs too much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_preprocessing.topology import MIN_EDGE, Topology, nnunet_topology
from utils.contracts import Plan, Shape, Spacing

MIN_STAGES = 2  # of a U-Net


def shorter_topology(
    topology: Topology, median_shape: Sequence[float], spacing_mm: Spacing
) -> Topology | None:
    """nnU-Net's step: the axis that covers most of the median case, shorter by one divisor, pooled anew.

    The last axis wins a tie; a flat patch has no first axis to shorten. None where nothing is left to pool.
    """
    patch = topology.patch
    axis = max(_long_axes(patch), key=lambda axis: (patch[axis] / median_shape[axis], axis))
    step = topology.divisor[axis]
    # The divisor may change with the shorter patch; the step is the one that the shorter patch needs.
    if patch[axis] > step:
        step = nnunet_topology(_shortened(patch, axis, step), spacing_mm).divisor[axis]
    if patch[axis] - step < MIN_EDGE:
        return None
    return nnunet_topology(_shortened(patch, axis, step), spacing_mm)


def with_shorter_patch(plan: Plan) -> Plan | None:
    """The plan with the next shorter patch and the stages for it; None where there is no shorter one.

    Where the stages are not those of nnU-Net's rule (NVIDIA's, or edited by hand) they stay as they are, and
    the patch gets shorter by what they divide it by. Channels and blocks stay those of their level.
    """
    topology = Topology(patch=plan.patch, stages=plan.stages)
    rule = nnunet_topology(plan.patch, plan.spacing_mm)
    if _same_pooling(rule, topology):
        shorter = shorter_topology(topology, plan.median_shape, plan.spacing_mm)
    else:
        shorter = _shorter_with_its_stages(topology, plan.median_shape)
    if shorter is None or len(shorter.stages) < MIN_STAGES:
        return None
    stages = tuple(
        replace(stage, channels=own.channels, num_blocks=own.num_blocks)
        for stage, own in zip(shorter.stages, plan.stages, strict=False)  # shorter patches have fewer
    )
    return replace(plan, patch=shorter.patch, stages=stages)


def _same_pooling(one: Topology, other: Topology) -> bool:
    return one.patch == other.patch and [(stage.stride, stage.kernel) for stage in one.stages] == [
        (stage.stride, stage.kernel) for stage in other.stages
    ]


def _shorter_with_its_stages(topology: Topology, median_shape: Sequence[float]) -> Topology | None:
    """The longest axis that leaves the lowest stage an edge of 4 voxels, shorter by one divisor."""
    patch, divisor = topology.patch, topology.divisor
    axes = [axis for axis in _long_axes(patch) if patch[axis] // divisor[axis] > MIN_EDGE]
    if not axes:
        return None
    axis = max(axes, key=lambda axis: (patch[axis] / median_shape[axis], axis))
    return replace(topology, patch=_shortened(patch, axis, divisor[axis]))


def _long_axes(patch: Shape) -> tuple[int, ...]:
    return (1, 2) if patch[0] == 1 else (0, 1, 2)


def _shortened(patch: Shape, axis: int, step: int) -> Shape:
    depth, height, width = (edge - step if index == axis else edge for index, edge in enumerate(patch))
    return depth, height, width
