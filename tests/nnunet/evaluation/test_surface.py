"""Surface distances with a ruler: few voxels, thick slices, empty masks."""

import numpy as np
import pytest

from nnunet.evaluation.surface import surface_distances, surface_score

THICK = (5.0, 1.0, 1.0)


def cube(start: int, size: int = 3, shape: tuple[int, int, int] = (9, 9, 9)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[start : start + size, 2:5, 2:5] = True
    return mask


def test_one_voxel_off_along_the_thick_axis_is_five_millimetres_away() -> None:
    truth, predicted = np.zeros((2, 3, 5, 5), dtype=bool)
    truth[1, 2, 2], predicted[2, 2, 2] = True, True
    score = surface_score(truth, predicted, THICK, tolerance_mm=4.9)
    assert (score.hd95_mm, score.mean_distance_mm, score.surface_dice) == (5.0, 5.0, 0.0)
    assert surface_score(truth, predicted, THICK, tolerance_mm=5.0).surface_dice == 1.0


def test_only_the_surface_counts_and_both_directions_are_pooled() -> None:
    inner, outer = cube(3, 1), cube(2, 3)
    inner[:, 2:5, 2:5] = False
    inner[3, 3, 3] = True
    distances = surface_distances(outer, inner, (1.0, 1.0, 1.0))
    # The cube of 27 voxels has 26 on its surface; the voxel inside is 1 away from 6 of them.
    assert len(distances.to_predicted_mm) == 26
    assert distances.to_reference_mm.tolist() == [1.0]
    score = surface_score(outer, inner, (1.0, 1.0, 1.0), tolerance_mm=1.0)
    assert score.surface_dice == pytest.approx((6 + 1) / 27)


def test_equal_masks_have_no_distance_even_on_the_edge_of_the_volume() -> None:
    mask = cube(0)
    score = surface_score(mask, mask, THICK, tolerance_mm=0.0)
    assert (score.surface_dice, score.hd95_mm) == (1.0, 0.0)


def test_both_empty_agree_and_one_empty_does_not() -> None:
    nothing = np.zeros((4, 4, 4), dtype=bool)
    both = surface_score(nothing, nothing, THICK, tolerance_mm=1.0)
    assert both.surface_dice == 1.0
    assert np.isnan(both.hd95_mm)
    assert np.isnan(both.mean_distance_mm)
    for pair in ((cube(2), np.zeros((9, 9, 9), bool)), (np.zeros((9, 9, 9), bool), cube(2))):
        one = surface_score(*pair, THICK, tolerance_mm=1e9)
        assert (one.surface_dice, one.hd95_mm) == (0.0, float("inf"))


def test_the_crop_to_the_masks_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    pair = generator.random((2, 6, 6, 6)) > 0.6
    padded = np.pad(pair, ((0, 0), (4, 3), (2, 5), (7, 1)))
    scores = [surface_score(a, b, THICK, tolerance_mm=1.0) for a, b in (pair, padded)]
    assert scores[0] == scores[1]


def squares(shift: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two squares (64, 64) of 40 x 40 voxels, the second moved."""
    truth, predicted = np.zeros((2, 64, 64), dtype=bool)
    truth[10:50, 10:50], predicted[10 + shift : 50 + shift, 10:50] = True, True
    return truth, predicted


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_one_slice_is_measured_in_its_plane_whichever_its_axis(thin: int) -> None:
    truth, predicted = (np.expand_dims(mask, thin) for mask in squares())
    first, second, third = np.insert([1.0, 1.0], thin, 8.0).tolist()
    score = surface_score(truth, predicted, (first, second, third), tolerance_mm=1.0)
    # Along each of two sides 34 of the 156 border voxels lie on the other border, and one at either end of
    # these lies next to it; the other ends are 6 mm apart.
    assert score.surface_dice == pytest.approx(2 * 36 / 156)
    assert score.hd95_mm == 6.0


def test_spacing_goes_with_its_axis_when_the_slice_axis_is_dropped() -> None:
    truth, predicted = squares()
    score = surface_score(truth[:, None], predicted[:, None], (0.5, 9.0, 2.0), tolerance_mm=0.1)
    assert score.hd95_mm == 3.0


def test_a_line_and_a_single_voxel_have_distances_too() -> None:
    line, moved = np.zeros((2, 1, 9, 1), dtype=bool)
    line[0, 2:5], moved[0, 4:7] = True, True
    distances = surface_distances(line, moved, (1.0, 2.0, 1.0))
    assert distances.to_predicted_mm.tolist() == [4.0, 0.0]  # the ends 2 and 4, from 4 and 6
    voxel = np.ones((1, 1, 1), dtype=bool)
    assert surface_score(voxel, voxel, THICK, tolerance_mm=0.0).surface_dice == 1.0
    assert surface_score(voxel, ~voxel, THICK, tolerance_mm=9.0).hd95_mm == float("inf")


def test_a_mask_in_one_slice_of_several_is_a_sheet_all_of_which_is_border() -> None:
    sheet = np.zeros((6, 6, 3), dtype=bool)
    sheet[1:5, 1:5, 1] = True
    assert len(surface_distances(sheet, sheet, (1.0, 1.0, 1.0)).to_predicted_mm) == 16
