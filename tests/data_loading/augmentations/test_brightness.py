"""Brightness: factors as in nnU-Net v2 or in NVIDIA's recipe, and a plain multiplication."""

import numpy as np
import pytest
from scipy import stats

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.brightness import Brightness
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.errors import UserError

CONTEXT = DrawContext(patch=(4, 6, 5), num_channels=3)


def test_15_percent_of_cases_get_a_factor_per_channel_half_below_and_half_above_one() -> None:
    drawn = draws(Brightness(), 10_000, CONTEXT)
    assert drawn.shape == (10_000, 4)
    assert abs(drawn[:, 0].mean() - 0.15) < 0.015  # 4 standard errors
    factors = drawn[:, 1:].ravel()
    below, above = factors[factors < 1], factors[factors >= 1]
    assert abs(below.size / factors.size - 0.5) < 0.012
    assert stats.kstest(below, "uniform", args=(0.75, 0.25)).pvalue > 0.001
    assert stats.kstest(above, "uniform", args=(1.0, 0.25)).pvalue > 0.001
    assert abs(np.corrcoef(drawn[:, 1], drawn[:, 2])[0, 1]) < 0.04


def test_an_uneven_range_is_still_drawn_half_below_one() -> None:
    factors = draws(Brightness(low=0.9, high=3.0), 10_000, CONTEXT)[:, 1:]
    assert abs((factors < 1).mean() - 0.5) < 0.012
    assert factors.min() > 0.899
    assert 2.9 < factors.max() <= 3


def test_same_draws_one_factor_uniformly_over_the_whole_range() -> None:
    factors = draws(Brightness(low=0.7, high=1.3, same=True), 10_000, CONTEXT)[:, 1:]
    assert (factors == factors[:, :1]).all()
    assert stats.kstest(factors[:, 0], "uniform", args=(0.7, 0.6)).pvalue > 0.001


@pytest.mark.parametrize(("low", "high"), [(1.2, 1.5), (0.2, 0.5), (1.0, 1.0)])
def test_a_range_without_one_in_it_is_drawn_from_uniformly(low: float, high: float) -> None:
    factors = draws(Brightness(low=low, high=high), 1000, CONTEXT)[:, 1:]
    assert factors.min() >= np.float32(low)
    assert factors.max() <= np.float32(high)
    assert abs(factors.mean() - (low + high) / 2) < 0.02


@pytest.mark.parametrize(("low", "high"), [(1.3, 0.7), (0.0, 1.0), (-0.5, 1.5)])
def test_a_range_that_is_none_is_refused_by_name(low: float, high: float) -> None:
    with pytest.raises(UserError, match=f"brightness: .* low={low}, high={high}"):
        Brightness(low=low, high=high)


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_each_channel_is_multiplied_by_its_own_factor(run) -> None:  # noqa: ANN001
    image, label = random_block(CONTEXT.patch, 3, seed=1)
    drawn = np.array([1, 0.8, 1.0, 1.2], np.float32)
    (changed,), (kept,) = run(Brightness(), [drawn], ([image], [label]))
    expected = image * np.array([0.8, 1.0, 1.2], np.float32)[:, None, None, None]
    np.testing.assert_allclose(changed, expected, rtol=1e-6)
    np.testing.assert_array_equal(kept, label)
