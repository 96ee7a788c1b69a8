"""Stages of the U-Net (strides, kernels, channels) from patch and spacing, by nnU-Net's or NVIDIA's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from utils.contracts import Shape, Spacing, Stage

MIN_EDGE = 4  # voxels; nnU-Net never pools an axis below it
SPACING_FACTOR = 2.0  # axes whose spacings differ by less are pooled and convolved together
FIRST_CHANNELS = 32
MAX_CHANNELS_3D = 320
MAX_CHANNELS_2D = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A patch padded to what its stages can halve, and the stages; a flat patch has 1 on the first axis."""

    patch: Shape
    stages: tuple[Stage, ...]

    @property
    def divisor(self) -> Shape:
        """Total stride per axis; the patch is a multiple of it."""
        return total_stride(self.stages)


def total_stride(stages: Sequence[Stage]) -> Shape:
    """Product of the strides of all stages, per axis."""
    depth, height, width = (prod(stage.stride[axis] for stage in stages) for axis in range(3))
    return depth, height, width


def with_blocks(topology: Topology, blocks: Sequence[int]) -> Topology:
    """The topology with `blocks` per stage, finest first; the last number holds for all stages behind."""
    stages = tuple(
        replace(stage, num_blocks=blocks[min(level, len(blocks) - 1)])
        for level, stage in enumerate(topology.stages)
    )
    return replace(topology, stages=stages)


def max_channels_for(size: Sequence[float]) -> int:
    """Feature maps at most: 512 for a patch of one slice, else 320 (Isensee et al. 2021)."""
    return MAX_CHANNELS_2D if size[0] == 1 else MAX_CHANNELS_3D


def nnunet_topology(size: Sequence[float], spacing_mm: Spacing) -> Topology:
    """nnU-Net's pooling: halve the axes of similar spacing until an edge of 4 voxels; no limit on the stages.

    `size` is (D, H, W) in voxels, may hold halves (a median of shapes) and comes back padded. A convolution
    has kernel 1 along an axis until its spacing is within a factor of 2 of the finest one, and 3 from then
    on.
    """
    axes = _pooled_axes(size)
    edges = {axis: float(size[axis]) for axis in axes}
    spacing = {axis: spacing_mm[axis] for axis in axes}
    strides, kernels = [(1, 1, 1)], []
    wide: set[int] = set()
    while pooled := _axes_to_pool(edges, spacing):
        finest = min(spacing.values())
        wide |= {axis for axis in axes if spacing[axis] / finest < SPACING_FACTOR}
        kernels.append(_per_axis(wide, 3))
        strides.append(_per_axis(pooled, 2))
        for axis in pooled:
            edges[axis], spacing[axis] = ceil(edges[axis] / 2), spacing[axis] * 2
    kernels.append(_per_axis(axes, 3))
    stages = _stages(strides, kernels, max_channels_for(size))
    return Topology(patch=_padded(size, total_stride(stages)), stages=stages)


def nvidia_stages(
    patch: Shape, spacing_mm: Spacing, *, depth: int, min_fmap: int, max_channels: int
) -> tuple[Stage, ...]:
    """NVIDIA's rule: at most `depth` poolings, none that leaves an edge below `min_fmap` voxels.

    An axis is pooled and convolved (kernel 3) where its spacing is at most twice the finest one.
    """
    axes = _pooled_axes(patch)
    edges = {axis: float(patch[axis]) for axis in axes}
    spacing = {axis: spacing_mm[axis] for axis in axes}
    strides, kernels = [(1, 1, 1)], []
    while len(kernels) < depth:
        finest = min(spacing.values())
        near = {axis for axis in axes if spacing[axis] / finest <= SPACING_FACTOR}
        pooled = {axis for axis in near if edges[axis] >= 2 * min_fmap}
        if not pooled:
            break
        strides.append(_per_axis(pooled, 2))
        kernels.append(_per_axis(near, 3))
        for axis in pooled:
            edges[axis], spacing[axis] = edges[axis] / 2, spacing[axis] * 2
    kernels.append(_per_axis(axes, 3))
    return _stages(strides, kernels, max_channels)


def nvidia_topology(size: Sequence[float], spacing_mm: Spacing, *, depth: int, min_fmap: int) -> Topology:
    """`nvidia_stages` of `size`, padded until every stage halves whole voxels (at most to 2^depth)."""
    patch = _padded(size, (1, 1, 1))
    while True:
        stages = nvidia_stages(
            patch, spacing_mm, depth=depth, min_fmap=min_fmap, max_channels=max_channels_for(patch)
        )
        padded = _padded(patch, total_stride(stages))
        if padded == patch:
            return Topology(patch=patch, stages=stages)
        patch = padded


def _pooled_axes(size: Sequence[float]) -> tuple[int, ...]:
    """A patch of one slice has no third axis to pool or convolve."""
    return (1, 2) if size[0] == 1 else (0, 1, 2)


def _axes_to_pool(edges: dict[int, float], spacing: dict[int, float]) -> set[int]:
    long_enough = [axis for axis, edge in edges.items() if edge >= 2 * MIN_EDGE]
    finest = min((spacing[axis] for axis in long_enough), default=0.0)
    pooled = {axis for axis in long_enough if spacing[axis] / finest < SPACING_FACTOR}
    # One axis alone must be longer, else the last pooling would only flatten the bottleneck.
    if len(pooled) == 1 and edges[next(iter(pooled))] < 3 * MIN_EDGE:
        return set()
    return pooled


def _per_axis(axes: Sequence[int] | set[int], value: int) -> Shape:
    return (value if 0 in axes else 1, value if 1 in axes else 1, value if 2 in axes else 1)


def _padded(size: Sequence[float], divisor: Shape) -> Shape:
    depth, height, width = (ceil(edge / step) * step for edge, step in zip(size, divisor, strict=True))
    return depth, height, width


def _stages(strides: list[Shape], kernels: list[Shape], max_channels: int) -> tuple[Stage, ...]:
    return tuple(
        Stage(channels=min(FIRST_CHANNELS * 2**level, max_channels), kernel=kernel, stride=stride)
        for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
    )
