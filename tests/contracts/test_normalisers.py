"""What every normaliser must do, run on each entry of the registry."""

import numpy as np
import pytest

from data_preprocessing.normalisers import NORMALISERS, build_normaliser
from data_preprocessing.normalisers.base import Normaliser
from utils.contracts import IntensityStats

STATS = IntensityStats(mean=40.0, std=20.0, median=35.0, min=-100.0, max=300.0, low=-50.0, high=200.0)
EVERY = [(spec.name, uses_mask) for spec in NORMALISERS for uses_mask in (False, True)]


@pytest.fixture(params=EVERY, ids=lambda pair: f"{pair[0]}-{'masked' if pair[1] else 'whole'}")
def normaliser(request: pytest.FixtureRequest) -> Normaliser:
    name, uses_mask = request.param
    return build_normaliser(name, uses_mask=uses_mask)


def scan() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).normal(100, 30, (4, 5, 6)).astype(np.float32)
    image[0] = 0
    return image, image != 0


def test_it_keeps_shape_and_gives_float32(normaliser: Normaliser) -> None:
    image, mask = scan()
    result = normaliser.apply(image, mask, STATS)
    assert (result.shape, result.dtype) == (image.shape, np.float32)


def test_it_leaves_its_input_untouched(normaliser: Normaliser) -> None:
    image, mask = scan()
    before = image.copy()
    result = normaliser.apply(image, mask, STATS)
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 30000.0])
def test_a_constant_image_stays_finite_and_constant(normaliser: Normaliser, value: float) -> None:
    image = np.full((3, 4, 5), value, np.float32)
    result = normaliser.apply(image, image != 0, STATS)
    assert np.isfinite(result).all()
    assert np.ptp(result) == 0
    assert np.abs(result).max() <= max(abs(value), 10)


def test_an_empty_mask_stays_finite(normaliser: Normaliser) -> None:
    image, mask = scan()
    assert np.isfinite(normaliser.apply(image, np.zeros_like(mask), STATS)).all()


def test_a_dataset_without_spread_stays_finite(normaliser: Normaliser) -> None:
    flat = IntensityStats(mean=1.0, std=0.0, median=1.0, min=1.0, max=1.0, low=1.0, high=1.0)
    assert np.isfinite(normaliser.apply(*scan(), flat)).all()


def test_it_never_reverses_the_order_of_intensities(normaliser: Normaliser) -> None:
    image, mask = scan()
    inside = normaliser.apply(image, mask, STATS)[mask]
    assert (np.diff(inside[np.argsort(image[mask])]) >= 0).all()
