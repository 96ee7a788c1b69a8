"""Each normaliser by pencil."""

import numpy as np
import pytest

from data_preprocessing.normalisers import build_normaliser
from utils.contracts import IntensityStats
from utils.registry import UnknownPartError

STATS = IntensityStats(mean=40.0, std=20.0, median=35.0, min=-100.0, max=300.0, low=-60.0, high=200.0)


def apply(name: str, values: list[float], *, uses_mask: bool = False) -> list[float]:
    image = np.array(values, np.float32).reshape(1, 1, -1)
    result = build_normaliser(name, uses_mask=uses_mask).apply(image, image != 0, STATS)
    return result.ravel().tolist()


def test_ct_is_clipped_to_the_window_then_standardised_with_the_dataset() -> None:
    assert apply("ct_window", [-1000, 40, 60, 3000]) == [-5, 0, 1, 8]


def test_z_score_has_mean_zero_and_deviation_one() -> None:
    assert apply("z_score", [1, 3]) == [-1, 1]


def test_a_masked_z_score_ignores_zeros_and_leaves_them_zero() -> None:
    assert apply("z_score", [0, 1, 3, 0], uses_mask=True) == [0, -1, 1, 0]


def test_unit_range_ends_at_zero_and_one() -> None:
    assert apply("unit_range", [-10, 0, 10]) == [0, 0.5, 1]


def test_rgb_is_divided_by_255() -> None:
    assert apply("rgb", [0, 51, 255]) == pytest.approx([0, 0.2, 1])


def test_identity_changes_nothing() -> None:
    assert apply("identity", [-3, 0.5]) == [-3, 0.5]


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UnknownPartError, match="z_score"):
        build_normaliser("histogram")
