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
