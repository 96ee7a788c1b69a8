"""Orient, crop and pad, and the way back."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing import geometry
from data_preprocessing.geometry import Box

ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_comes_back_exactly(orientation: str) -> None:
    volume = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    planned = geometry.to_planned_axes(volume, orientation=orientation, axis_order=(1, 2, 0))
    back = geometry.to_file_axes(planned, orientation=orientation, axis_order=(1, 2, 0))
    np.testing.assert_array_equal(back, volume)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


def test_ras_becomes_z_y_x() -> None:
    volume = np.zeros((2, 3, 4))
    volume[1, 2, 3] = 7
    planned = geometry.to_planned_axes(volume, orientation="RAS")
    assert planned.shape == (4, 3, 2)
    assert planned[3, 2, 1] == 7


def test_lps_flips_x_and_y_but_not_z() -> None:
    volume = np.zeros((2, 3, 4))
    volume[0, 0, 0] = 7
    assert geometry.to_planned_axes(volume, orientation="LPS")[0, 2, 1] == 7


def test_the_same_scan_in_any_orientation_gives_the_same_volume() -> None:
    world = np.arange(24).reshape(4, 3, 2)
    stored = [geometry.to_file_axes(world, orientation=o) for o in ORIENTATIONS]
    again = [geometry.to_planned_axes(s, orientation=o) for s, o in zip(stored, ORIENTATIONS, strict=True)]
    assert all((volume == world).all() for volume in again)


def test_spacing_follows_its_axis() -> None:
    # File axes run along S, L and P, so z is the first of them, y the third, x the second.
    spacing = geometry.planned_spacing((5.0, 1.0, 2.0), orientation="SLP", axis_order=(0, 1, 2))
    assert spacing == (5.0, 2.0, 1.0)


@pytest.mark.parametrize("orientation", ["RRS", "RA", "XYZ"])
def test_a_wrong_orientation_is_refused(orientation: str) -> None:
    with pytest.raises(ValueError, match="once"):
        geometry.to_planned_axes(np.zeros((1, 1, 1)), orientation=orientation)


def test_axis_order_must_be_a_permutation() -> None:
    with pytest.raises(ValueError, match="permutation"):
        geometry.to_planned_axes(np.zeros((1, 1, 1)), orientation="RAS", axis_order=(0, 0, 1))


def test_bounding_box_touches_the_outermost_voxels() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1, 2, 3] = mask[3, 2, 5] = True
    assert geometry.bounding_box(mask) == Box(start=(1, 2, 3), stop=(4, 3, 6))


def test_bounding_box_of_nothing_is_everything() -> None:
    assert geometry.bounding_box(np.zeros((2, 3, 4), dtype=bool)) == Box(start=(0, 0, 0), stop=(2, 3, 4))


def test_a_voxel_counts_if_any_channel_is_non_zero() -> None:
    image = np.zeros((2, 1, 1, 3))
    image[0, 0, 0, 0], image[1, 0, 0, 1] = 1, -1
    np.testing.assert_array_equal(geometry.nonzero_mask(image)[0, 0], [True, True, False])


def test_only_positive_voxels_count_for_nvidia() -> None:
    image = np.array([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(geometry.positive_mask(image)[0, 0], [False, False, True])


def test_an_enclosed_hole_is_filled_and_an_open_one_is_not() -> None:
    mask = np.ones((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = mask[0, 2, 2] = False
    filled = geometry.fill_holes(mask)
    assert filled[2, 2, 2]
    assert not filled[0, 2, 2]


@pytest.mark.parametrize("share", [0.0005, 0.005, 0.015, 0.4])
def test_holes_are_those_that_flooding_finds(share: float) -> None:
    generator = np.random.default_rng(0)
    for shape in ((60, 70, 80), (1, 600, 700), (600, 1, 700), (30, 40, 50)):
        mask = generator.random(shape) > share
        mask[:, shape[1] // 2, 8:20] = share > 0.1  # a tunnel where few voxels are outside
        before = mask.copy()
        np.testing.assert_array_equal(geometry.fill_holes(mask), ndimage.binary_fill_holes(mask))
        np.testing.assert_array_equal(mask, before)


def test_uncrop_undoes_crop() -> None:
    volume = np.zeros((1, 5, 6, 7))
    volume[:, 1:4, 2:3, 3:6] = 1
    box = Box(start=(1, 2, 3), stop=(4, 3, 6))
    cut = geometry.crop(volume, box)
    assert cut.shape == (1, 3, 1, 3)
    np.testing.assert_array_equal(geometry.uncrop(cut, box, shape=(5, 6, 7)), volume)


def test_padding_is_centred_with_the_odd_voxel_at_the_end() -> None:
    padding = geometry.padding_to((3, 8, 4), (6, 8, 5))
    assert (padding.before, padding.after) == ((1, 0, 0), (2, 0, 1))


def test_unpad_undoes_pad() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    padding = geometry.padding_to((2, 3, 4), (5, 3, 7))
    padded = geometry.pad(volume, padding, fill=-1)
    assert padded.shape == (5, 3, 7)
    assert padded[0, 0, 0] == -1
    np.testing.assert_array_equal(geometry.unpad(padded, padding), volume)
