"""The element count that decides how large a patch may be."""

import pytest

from data_preprocessing.memory_budget import count_elements, exceeds_memory, fitting_batch_size
from data_preprocessing.topology import nnunet_topology
from utils.contracts import Stage


def stage(channels: int, stride: int, num_blocks: int = 2) -> Stage:
    return Stage(channels=channels, kernel=(3, 3, 3), stride=(stride, stride, stride), num_blocks=num_blocks)


def test_two_stages_are_counted_by_hand() -> None:
    # 64 voxels: 2 + 2 convolutions and a transposed one of 10 channels, 3 label maps; 8 voxels: 2 of 20.
    elements = count_elements((4, 4, 4), (stage(10, 1), stage(20, 2)), num_labels=3)
    assert elements == 64 * (5 * 10 + 3) + 8 * 2 * 20


def test_more_blocks_count_more_convolutions() -> None:
    elements = count_elements(
        (4, 4, 4), (stage(10, 1, num_blocks=3), stage(20, 2, num_blocks=1)), num_labels=2
    )
    assert elements == 64 * (7 * 10 + 2) + 8 * 1 * 20


def test_the_reference_patch_of_four_labels_has_455_million_elements() -> None:
    topology = nnunet_topology((128, 128, 128), (1.0, 1.0, 1.0))
    elements = count_elements(topology.patch, topology.stages, num_labels=4)
    assert elements == pytest.approx(455e6, abs=0.5e6)


def test_a_device_of_twice_the_memory_holds_twice_the_batch() -> None:
    sizes = [
        fitting_batch_size((64, 64, 64), int(56e6), memory_gb=memory, dataset_voxels=1e12)
        for memory in (8.0, 16.0)
    ]
    assert sizes == [20, 40]


def test_a_batch_covers_at_most_a_twentieth_of_the_dataset() -> None:
    assert fitting_batch_size((10, 10, 10), 1000, memory_gb=8.0, dataset_voxels=100_000) == 5


def test_a_batch_is_never_smaller_than_two() -> None:
    assert fitting_batch_size((10, 10, 10), 10**12, memory_gb=8.0, dataset_voxels=1.0) == 2


def test_a_flat_patch_may_grow_until_a_batch_of_two_fits() -> None:
    # 85 million elements are allowed at batch 12, so six times as many at batch 2.
    assert not exceeds_memory((1, 512, 512), int(6 * 85e6), memory_gb=8.0)
    assert exceeds_memory((1, 512, 512), int(6 * 85e6) + 1, memory_gb=8.0)
