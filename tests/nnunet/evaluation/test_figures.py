"""Figures: the slice, the window and the enlarged part they show, and that they are pictures at all."""

import io

import numpy as np
import pytest
from matplotlib import image as picture

from nnunet.evaluation.figures import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Curve,
    dice_distribution_png,
    fullest_slice,
    intensity_window,
    overlay_png,
    training_curve_png,
    zoom_box,
)


def holds_colour(png: bytes, colour: str) -> bool:
    pixels = (picture.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return bool((np.abs(pixels - wanted).max(axis=-1) <= 2).any())


def block(size: int = 8) -> np.ndarray:
    mask = np.zeros((3, 40, 50), dtype=np.int16)
    mask[1, 10 : 10 + size, 20 : 20 + size] = 1
    return mask


def test_the_slice_shown_is_the_one_with_most_reference_foreground() -> None:
    truth = block()
    truth[2, 0, 0] = 1
    assert fullest_slice(truth, np.ones_like(truth)) == 1


@pytest.mark.parametrize(("predicted_slice", "expected"), [(0, 0), (None, 1)])
def test_without_reference_the_prediction_or_the_middle_decides(
    predicted_slice: int | None, expected: int
) -> None:
    predicted = np.zeros((3, 4, 4), dtype=np.int16)
    if predicted_slice is not None:
        predicted[predicted_slice, 1, 1] = 1
    assert fullest_slice(np.zeros_like(predicted), predicted) == expected


def test_the_window_ignores_outliers_and_is_never_of_zero_width() -> None:
    image = np.linspace(0, 100, 1001)
    image[0] = np.nan
    low, high = intensity_window(image)
    assert low == pytest.approx(1, abs=0.2)
    assert high == pytest.approx(99, abs=0.2)
    assert intensity_window(np.full((2, 2, 2), 7.0)) == (7.0, 8.0)
    assert intensity_window(np.full((2, 2, 2), np.nan)) == (0.0, 1.0)


def test_a_small_structure_is_enlarged_and_lies_inside_the_box() -> None:
    mask = np.zeros((100, 120), dtype=np.int16)
    mask[0:5, 116:120] = 1
    box = zoom_box(mask, np.zeros_like(mask))
    assert box is not None
    assert mask[box].sum() == mask.sum()
    assert mask[box].shape == (24, 24)


@pytest.mark.parametrize("size", [0, 80])
def test_an_absent_or_large_structure_is_not_enlarged(size: int) -> None:
    mask = np.zeros((100, 120), dtype=np.int16)
    mask[:size, :size] = 1
    assert zoom_box(mask, mask) is None


def test_an_overlay_shows_both_contours_apart() -> None:
    image = np.zeros((3, 40, 50), dtype=np.float32)
    both = overlay_png(image, block(8), block(14), window=(0.0, 1.0))
    assert holds_colour(both, REFERENCE_COLOUR)
    assert holds_colour(both, PREDICTION_COLOUR)
    missed = overlay_png(image, block(8), np.zeros_like(block()), window=(0.0, 1.0))
    assert not holds_colour(missed, PREDICTION_COLOUR)


def test_the_first_column_is_on_the_right_and_the_first_row_at_the_bottom() -> None:
    image = np.zeros((1, 30, 30), dtype=np.float32)
    image[0, :5, :5] = 1.0
    empty = np.zeros(image.shape, dtype=np.int16)
    pixels = picture.imread(io.BytesIO(overlay_png(image, empty, empty, window=(0.0, 1.0))))[..., 0]
    assert pixels[-10, -10] > 0.9
    assert pixels[10, 10] < 0.1


def test_a_structure_at_the_border_has_a_closed_contour() -> None:
    full = np.ones((1, 30, 30), dtype=np.int16)
    png = overlay_png(np.zeros(full.shape), full, np.zeros_like(full), window=(0.0, 1.0))
    assert holds_colour(png, REFERENCE_COLOUR)


def test_equal_data_give_equal_pictures() -> None:
    dice = [np.array([0.1, 0.5, np.nan]), np.array([np.nan, np.nan, np.nan])]
    assert dice_distribution_png(["a", "b"], dice) == dice_distribution_png(["a", "b"], dice)


def test_losses_and_scores_have_a_panel_each() -> None:
    loss = Curve(name="train/loss", epochs=(0, 1), values=(1.0, 0.5))
    score = Curve(name="val/dsc", epochs=(0, 1), values=(0.2, 0.8))
    widths = [picture.imread(io.BytesIO(training_curve_png(c))).shape[1] for c in ([loss], [loss, score])]
    assert widths[1] == 2 * widths[0]
