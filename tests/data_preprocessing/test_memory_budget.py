"""The element count that decides how large a patch may be."""

import pytest

from data_preprocessing.memory_budget import count_elements, exceeds_memory, fitting_batch_size
from data_preprocessing.planners import PLANNERS
from data_preprocessing.topology import nnunet_topology, with_blocks
from utils.contracts import Stage

VOLUME = PLANNERS["default"].volume


def stage(channels: int, stride: int, num_blocks: int = 2) -> Stage:
    return Stage(channels=channels, kernel=(3, 3, 3), stride=(stride, stride, stride), num_blocks=num_blocks)


def test_two_stages_are_counted_by_hand() -> None:
    # 64 voxels: 2 + 2 convolutions and a transposed one of 10 channels, 3 label maps; 8 voxels: 2 of 20.
    elements = count_elements((4, 4, 4), (stage(10, 1), stage(20, 2)), num_labels=3)
    assert elements == 64 * (5 * 10 + 3) + 8 * 2 * 20


def test_blocks_of_encoder_and_decoder_are_counted_apart() -> None:
    stages = (stage(10, 1, num_blocks=3), stage(20, 2, num_blocks=1))
    elements = count_elements((4, 4, 4), stages, num_labels=2, decoder_blocks=4)
    assert elements == 64 * ((3 + 4 + 1) * 10 + 2) + 8 * 1 * 20


def test_a_residual_encoder_counts_stem_two_convolutions_per_block_and_the_skips_that_change_something() -> (
    None
):
    # 64 voxels: stem and one block of 10, decoder of 1 + 1, 3 labels; 8: two blocks and the first one's skip.
    stages = (stage(10, 1, num_blocks=1), stage(20, 2, num_blocks=2))
    elements = count_elements((4, 4, 4), stages, num_labels=3, encoder="residual", decoder_blocks=1)
    assert elements == 64 * ((1 + 2 + 2) * 10 + 3) + 8 * (4 + 1) * 20


@pytest.mark.parametrize(
    ("num_labels", "elements", "supervised"), [(3, 557_420_544, 558_319_104), (4, 559_517_696, 560_715_776)]
)
def test_the_residual_network_of_the_reference_patch_has_the_elements_of_nnunet(
    num_labels: int, elements: int, supervised: int
) -> None:
    stages = with_blocks(nnunet_topology((128, 128, 128), (1.0, 1.0, 1.0)), (1, 3, 4, 6)).stages
    counted = count_elements((128, 128, 128), stages, num_labels, encoder="residual", decoder_blocks=1)
    assert counted == elements
    # nnU-Net's published count has the supervised outputs of all lower resolutions too; its planner has not.
    assert counted + num_labels * sum(edge**3 for edge in (64, 32, 16, 8)) == supervised


def test_the_reference_patch_of_four_labels_has_455_million_elements() -> None:
    topology = nnunet_topology((128, 128, 128), (1.0, 1.0, 1.0))
    assert count_elements(topology.patch, topology.stages, num_labels=4) == 454_893_568


def test_a_device_of_twice_the_memory_holds_twice_the_batch() -> None:
    sizes = [
        fitting_batch_size((64, 64, 64), int(56e6), VOLUME, memory_gb=memory, dataset_voxels=1e12)
        for memory in (8.0, 16.0)
    ]
    assert sizes == [20, 40]


def test_a_batch_covers_at_most_a_twentieth_of_the_dataset() -> None:
    assert fitting_batch_size((10, 10, 10), 1000, VOLUME, memory_gb=8.0, dataset_voxels=100_000) == 5


def test_a_batch_is_never_smaller_than_two() -> None:
    assert fitting_batch_size((10, 10, 10), 10**12, VOLUME, memory_gb=8.0, dataset_voxels=1.0) == 2


def test_a_flat_patch_may_grow_until_a_batch_of_two_fits() -> None:
    # 85 million elements are allowed at batch 12, so six times as many at batch 2.
    assert not exceeds_memory(int(6 * 85e6), PLANNERS["default"].slice, memory_gb=8.0)
    assert exceeds_memory(int(6 * 85e6) + 1, PLANNERS["default"].slice, memory_gb=8.0)


def test_a_flat_patch_of_a_residual_planner_shrinks_until_the_whole_batch_fits() -> None:
    assert not exceeds_memory(int(135e6), PLANNERS["resenc_m"].slice, memory_gb=8.0)
    assert exceeds_memory(int(135e6) + 1, PLANNERS["resenc_m"].slice, memory_gb=8.0)
