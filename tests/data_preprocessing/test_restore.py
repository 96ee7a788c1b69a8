"""From the planned grid back to the scanner's."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from data_preprocessing import geometry
from data_preprocessing.restore import cropped_label, painted_regions, restore_label, restore_map
from utils.contracts import Footprint, Shape

ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]


def footprint_of(native: Shape, *, orientation: str = "RAS", axis_order: Shape = (0, 1, 2)) -> Footprint:
    """A case of odd sizes whose crop takes one voxel off the start of each planned axis."""
    volume = np.zeros(native)
    oriented = geometry.to_planned_axes(volume, orientation=orientation, axis_order=axis_order).shape
    cropped = geometry.as_shape(size - 1 for size in oriented)
    return Footprint(
        native_shape=native,
        native_spacing_mm=(1.0, 1.0, 1.0),
        orientation=orientation,
        axis_order=axis_order,
        oriented_shape=geometry.as_shape(oriented),
        oriented_spacing_mm=(1.0, 1.0, 1.0),
        crop_start=(1, 1, 1),
        crop_stop=geometry.as_shape(oriented),
        cropped_shape=cropped,
        planned_shape=cropped,
        padding_before=(0, 0, 0),
        padding_after=(0, 0, 0),
        qform_code=1,
        sform_code=1,
        affine=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    )


def one_hot(label: np.ndarray, num_labels: int) -> np.ndarray:
    return np.stack([label == value for value in range(num_labels)]).astype(np.float32)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_label_returns_exactly_from_every_orientation(orientation: str) -> None:
    native = np.random.default_rng(0).integers(0, 3, (5, 7, 3)).astype(np.uint8)
    footprint = footprint_of(native.shape, orientation=orientation, axis_order=(1, 0, 2))
    planned = geometry.to_planned_axes(native, orientation=orientation, axis_order=(1, 0, 2))[1:, 1:, 1:]
    restored = restore_label(one_hot(planned, 3), footprint)
    again = geometry.to_planned_axes(restored, orientation=orientation, axis_order=(1, 0, 2))
    np.testing.assert_array_equal(again[1:, 1:, 1:], planned)
    assert restored.shape == native.shape
    assert not again[0].any()


def test_padding_is_removed() -> None:
    footprint = replace(footprint_of((3, 3, 3)), padding_before=(1, 0, 0), padding_after=(1, 0, 2))
    scores = np.zeros((2, 4, 2, 4), np.float32)
    scores[1] = 1
    assert restore_label(scores, footprint).sum() == 8


def test_scores_without_padding_pass_for_a_padded_case() -> None:
    footprint = replace(footprint_of((3, 3, 3)), padding_before=(1, 0, 0), padding_after=(1, 0, 2))
    assert restore_label(np.ones((1, 2, 2, 2), np.float32), footprint).shape == (3, 3, 3)


def test_a_wrong_shape_names_both_possible_ones() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*got \(9, 9, 9\)"):
        restore_label(np.zeros((2, 9, 9, 9), np.float32), footprint_of((3, 3, 3)))


def test_a_coarser_planned_grid_is_resampled_to_the_native_one() -> None:
    footprint = replace(footprint_of((9, 9, 9)), planned_shape=(4, 4, 4))
    scores = np.zeros((2, 4, 4, 4), np.float32)
    scores[0, :, :, :2] = scores[1, :, :, 2:] = 1
    restored = restore_label(scores, footprint)
    assert restored[:5].max() == 0
    assert restored[5:, 1:, 1:].min() == 1


def test_half_precision_tensors_are_accepted() -> None:
    scores = torch.zeros(2, 2, 2, 2, dtype=torch.float16)
    scores[1] = 3
    assert restore_label(scores, footprint_of((3, 3, 3))).sum() == 8


def test_the_lower_label_wins_a_tie() -> None:
    assert restore_label(np.ones((3, 2, 2, 2), np.float32), footprint_of((3, 3, 3))).max() == 0


def test_later_regions_write_their_label_over_earlier_ones() -> None:
    scores = np.zeros((2, 2, 2, 2), np.float32)
    scores[0] = 0.9
    scores[1, 0] = 0.6
    restored = restore_label(scores, footprint_of((3, 3, 3)), regions_class_order=(1, 2))
    assert sorted(restored.ravel().tolist()) == [0] * 19 + [1] * 4 + [2] * 4


def test_a_region_writes_the_label_of_the_order_above_one_half_and_by_itself() -> None:
    scores = np.array([0.9, 0.9, 0.4, 0.2, 0.6, 0.1, 0.5, 0.5], np.float32).reshape(2, 1, 2, 2)
    footprint = replace(footprint_of((3, 3, 2)), cropped_shape=(1, 2, 2), planned_shape=(1, 2, 2))
    written = cropped_label(scores, footprint, regions_class_order=(2, 1))
    assert written.ravel().tolist() == [1, 2, 0, 0]
    np.testing.assert_array_equal(painted_regions(scores, (2, 1)), written)


def test_regions_need_a_channel_each() -> None:
    with pytest.raises(ValueError, match="3 regions should have as many channels, got 2"):
        restore_label(np.ones((2, 2, 2, 2)), footprint_of((3, 3, 3)), regions_class_order=(1, 2, 3))


def test_the_label_before_resampling_lies_in_the_crop_of_the_restored_one() -> None:
    footprint = replace(footprint_of((9, 8, 7)), planned_shape=(4, 4, 4))
    scores = np.random.default_rng(0).random((3, 4, 4, 4)).astype(np.float32)
    cropped = cropped_label(scores, footprint)
    assert cropped.shape == footprint.cropped_shape
    planned = geometry.to_planned_axes(restore_label(scores, footprint), orientation="RAS")
    np.testing.assert_array_equal(planned[1:, 1:, 1:], cropped)


def test_a_map_keeps_its_values_and_the_outside_value() -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    restored = restore_map(values, footprint_of((3, 3, 3)), outside=-5)
    assert restored.dtype == np.float32
    assert restored[0, 0, 0] == -5
    np.testing.assert_array_equal(restored[1:, 1:, 1:].transpose(2, 1, 0), values)
