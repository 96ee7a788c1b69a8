"""Stages by nnU-Net's and by NVIDIA's rule."""

from dataclasses import dataclass

import pytest

from data_preprocessing.topology import (
    nnunet_topology,
    nvidia_stages,
    nvidia_topology,
    total_stride,
    with_blocks,
)
from utils.contracts import Shape, Spacing, Stage

Flat = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What NVIDIA's rule gives for one task; `strides` after the first stage, `flat_levels` by kernel."""

    patch: Shape
    spacing_mm: Spacing
    strides: tuple[Shape, ...]
    flat_levels: Flat
    bottleneck: Shape


ALL, PLANE = (2, 2, 2), (1, 2, 2)
NVIDIA = {
    "01_3d": Published(
        patch=(128, 128, 128),
        spacing_mm=(1, 1, 1),
        strides=(ALL,) * 5,
        flat_levels=(),
        bottleneck=(4, 4, 4),
    ),
    "02_3d": Published(
        patch=(80, 192, 160),
        spacing_mm=(1.37, 1.25, 1.25),
        strides=(*(ALL,) * 4, PLANE),
        flat_levels=(),
        bottleneck=(5, 6, 5),
    ),
    "03_3d": Published(
        patch=(128, 128, 128),
        spacing_mm=(1, 0.7676, 0.7676),
        strides=(ALL,) * 5,
        flat_levels=(),
        bottleneck=(4, 4, 4),
    ),
    "04_3d": Published(
        patch=(40, 56, 40), spacing_mm=(1, 1, 1), strides=(ALL,) * 3, flat_levels=(), bottleneck=(5, 7, 5)
    ),
    "05_3d": Published(
        patch=(20, 320, 256),
        spacing_mm=(3.6, 0.62, 0.62),
        strides=(PLANE, PLANE, ALL, ALL, PLANE),
        flat_levels=(0, 1),
        bottleneck=(5, 10, 8),
    ),
    "06_3d": Published(
        patch=(80, 192, 160),
        spacing_mm=(1.24, 0.79, 0.79),
        strides=(*(ALL,) * 4, PLANE),
        flat_levels=(),
        bottleneck=(5, 6, 5),
    ),
    "07_3d": Published(
        patch=(40, 224, 224),
        spacing_mm=(2.5, 0.8, 0.8),
        strides=(PLANE, ALL, ALL, ALL, PLANE),
        flat_levels=(0,),
        bottleneck=(5, 7, 7),
    ),
    "08_3d": Published(
        patch=(64, 192, 192),
        spacing_mm=(1.5, 0.8, 0.8),
        strides=(*(ALL,) * 4, PLANE),
        flat_levels=(),
        bottleneck=(4, 6, 6),
    ),
    "09_3d": Published(
        patch=(64, 192, 160),
        spacing_mm=(1.6, 0.79, 0.79),
        strides=(PLANE, *(ALL,) * 4),
        flat_levels=(0,),
        bottleneck=(4, 6, 5),
    ),
    "10_3d": Published(
        patch=(56, 192, 160),
        spacing_mm=(3, 0.78, 0.78),
        strides=(PLANE, ALL, ALL, ALL, PLANE),
        flat_levels=(0,),
        bottleneck=(7, 6, 5),
    ),
    "01_2d": Published(
        patch=(1, 192, 160),
        spacing_mm=(1, 1, 1),
        strides=(PLANE,) * 5,
        flat_levels=tuple(range(6)),
        bottleneck=(1, 6, 5),
    ),
    "02_2d": Published(
        patch=(1, 320, 256),
        spacing_mm=(1.37, 1.25, 1.25),
        strides=(PLANE,) * 5,
        flat_levels=tuple(range(6)),
        bottleneck=(1, 10, 8),
    ),
    "05_2d": Published(
        patch=(1, 320, 320),
        spacing_mm=(3.6, 0.62, 0.62),
        strides=(PLANE,) * 5,
        flat_levels=tuple(range(6)),
        bottleneck=(1, 10, 10),
    ),
    "07_2d": Published(
        patch=(1, 512, 512),
        spacing_mm=(2.5, 0.8, 0.8),
        strides=(PLANE,) * 5,
        flat_levels=tuple(range(6)),
        bottleneck=(1, 16, 16),
    ),
    "04_2d": Published(
        patch=(1, 56, 40),
        spacing_mm=(1, 1, 1),
        strides=(PLANE,) * 3,
        flat_levels=tuple(range(4)),
        bottleneck=(1, 7, 5),
    ),
}


def published_stages(task: str) -> tuple[Stage, ...]:
    given = NVIDIA[task]
    channels = 512 if given.patch[0] == 1 else 320
    return nvidia_stages(given.patch, given.spacing_mm, depth=5, min_fmap=4, max_channels=channels)


@pytest.mark.parametrize("task", NVIDIA)
def test_nvidia_strides_are_the_published_ones(task: str) -> None:
    strides = tuple(stage.stride for stage in published_stages(task))
    assert strides == ((1, 1, 1), *NVIDIA[task].strides)


@pytest.mark.parametrize("task", NVIDIA)
def test_nvidia_kernels_are_flat_on_the_published_levels_only(task: str) -> None:
    given = NVIDIA[task]
    kernels = [stage.kernel for stage in published_stages(task)]
    assert kernels == [
        (1, 3, 3) if level in given.flat_levels else (3, 3, 3) for level in range(len(kernels))
    ]


@pytest.mark.parametrize("task", NVIDIA)
def test_nvidia_bottleneck_has_the_published_size(task: str) -> None:
    divisor = total_stride(published_stages(task))
    sizes = tuple(edge / step for edge, step in zip(NVIDIA[task].patch, divisor, strict=True))
    assert sizes == NVIDIA[task].bottleneck


def test_nvidia_channels_double_up_to_the_limit() -> None:
    assert [stage.channels for stage in published_stages("01_3d")] == [32, 64, 128, 256, 320, 320]
    assert [stage.channels for stage in published_stages("01_2d")] == [32, 64, 128, 256, 512, 512]


def test_nvidia_depth_six_with_small_maps_reaches_two_voxels() -> None:
    stages = nvidia_stages((128, 128, 128), (1, 1, 1), depth=6, min_fmap=2, max_channels=320)
    assert total_stride(stages) == (64, 64, 64)


def test_nvidia_pads_a_patch_that_its_stages_cannot_halve() -> None:
    assert nvidia_topology((17, 30, 30), (1, 1, 1), depth=5, min_fmap=4).patch == (20, 32, 32)


def test_spacings_exactly_twice_as_coarse_wait_in_nnunet_but_not_in_nvidia() -> None:
    patch, spacing = (32, 32, 32), (2.0, 1.0, 1.0)
    assert nnunet_topology(patch, spacing).stages[1].stride == (1, 2, 2)
    assert nvidia_stages(patch, spacing, depth=5, min_fmap=4, max_channels=320)[1].stride == (2, 2, 2)


def test_nnunet_pads_to_what_it_pools() -> None:
    topology = nnunet_topology((36, 50, 35), (1, 1, 1))
    assert (topology.patch, topology.divisor) == ((40, 56, 40), (8, 8, 8))


def test_nnunet_pads_the_half_voxel_of_a_median() -> None:
    assert nnunet_topology((36.5, 50, 35), (1, 1, 1)).patch == (40, 56, 40)


def test_a_single_axis_is_pooled_down_from_twelve_voxels_only() -> None:
    assert nnunet_topology((1, 4, 12), (1, 1, 1)).divisor == (1, 1, 2)
    assert nnunet_topology((1, 4, 11), (1, 1, 1)).divisor == (1, 1, 1)


def test_a_volume_too_small_to_pool_has_one_stage_with_full_kernels() -> None:
    topology = nnunet_topology((5, 6, 7), (1, 1, 1))
    assert topology.patch == (5, 6, 7)
    assert [stage.kernel for stage in topology.stages] == [(3, 3, 3)]


def test_a_flat_patch_has_flat_kernels_and_strides() -> None:
    stages = nnunet_topology((1, 64, 64), (5.0, 1.0, 1.0)).stages
    assert {stage.kernel for stage in stages} == {(1, 3, 3)}
    assert {stage.stride for stage in stages[1:]} == {(1, 2, 2)}


def test_the_bottleneck_kernel_is_full_although_the_axis_was_never_near() -> None:
    stages = nnunet_topology((6, 16, 16), (9.0, 1.0, 1.0)).stages
    assert [stage.kernel for stage in stages] == [(1, 3, 3), (1, 3, 3), (3, 3, 3)]


def test_the_last_number_of_blocks_holds_for_all_stages_behind() -> None:
    topology = nnunet_topology((64, 64, 64), (1.0, 1.0, 1.0))
    changed = with_blocks(topology, (1, 3, 4))
    assert [stage.num_blocks for stage in changed.stages] == [1, 3, 4, 4, 4]
    assert changed.patch == topology.patch
