"""Contrast: factors as in nnU-Net v2 or in NVIDIA's recipe, clamped to the channel's range."""

import numpy as np
import pytest

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.contrast import Contrast
from data_loading.kernels.intensity import extremes
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.errors import UserError

CONTEXT = DrawContext(patch=(9, 10, 11), num_channels=3)


def reference(image: np.ndarray, factors: np.ndarray, *, around_mean: bool) -> np.ndarray:
    """The definition, channel by channel in double precision."""
    changed = []
    for channel, factor in zip(image.astype(np.float64), factors, strict=True):
        centre = channel.mean() if around_mean else 0.0
        changed.append(np.clip((channel - centre) * factor + centre, channel.min(), channel.max()))
    return np.stack(changed)


def test_15_percent_of_cases_get_a_factor_per_channel_half_below_and_half_above_one() -> None:
    drawn = draws(Contrast(), 10_000, CONTEXT)
    assert abs(drawn[:, 0].mean() - 0.15) < 0.015  # 4 standard errors
    factors = drawn[:, 1:]
    assert factors.shape == (10_000, 3)
    assert abs((factors < 1).mean() - 0.5) < 0.012
    assert 0.75 <= factors.min() < 0.751
    assert 1.249 < factors.max() <= 1.25
    assert abs(factors[factors < 1].mean() - 0.875) < 0.003
    assert abs(factors[factors > 1].mean() - 1.125) < 0.003


def test_same_draws_one_factor_uniformly_over_the_whole_range() -> None:
    factors = draws(Contrast(low=0.65, high=1.5, same=True), 10_000, CONTEXT)[:, 1:]
    assert (factors == factors[:, :1]).all()
    assert abs(factors.mean() - 1.075) < 0.01
    assert abs((factors < 1).mean() - 0.35 / 0.85) < 0.02


def test_a_range_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="contrast: .* low=2.0, high=1.5"):
        Contrast(low=2.0, high=1.5)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("around_mean", [True, False])
def test_the_voxels_are_those_of_the_definition(run, around_mean: bool) -> None:  # noqa: ANN001, FBT001
    image, label = random_block(CONTEXT.patch, 3, seed=1)
    image += np.array([0.0, 3.0, -50.0], np.float32)[:, None, None, None]
    drawn = np.array([1, 0.6, 1.0, 1.7], np.float32)
    (changed,), (kept,) = run(Contrast(around_mean=around_mean), [drawn], ([image], [label]))
    expected = reference(image, drawn[1:], around_mean=around_mean)
    np.testing.assert_allclose(changed, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(kept, label)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("around_mean", [True, False])
def test_same_clamps_to_the_range_of_the_whole_patch(run, around_mean: bool) -> None:  # noqa: ANN001, FBT001
    """A channel may leave its own range, not that of all channels."""
    image, label = random_block(CONTEXT.patch, 3, seed=1)
    image *= np.array([1.0, 3.0, 0.1], np.float32)[:, None, None, None]
    drawn = np.array([1, 1.5, 1.5, 1.5], np.float32)
    part = Contrast(same=True, around_mean=around_mean)
    (changed,), _ = run(part, [drawn], ([image], [label]))
    centres = image.astype(np.float64).mean(axis=(1, 2, 3), keepdims=True) if around_mean else 0.0
    expected = np.clip((image - centres) * 1.5 + centres, image.min(), image.max())
    np.testing.assert_allclose(changed, expected, rtol=1e-5, atol=2e-5)
    assert changed[0].max() > image[0].max()
    assert (changed[1] == image.max()).sum() > 1


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_the_old_minimum_and_maximum_are_never_passed(run) -> None:  # noqa: ANN001
    image, label = random_block(CONTEXT.patch, 1, seed=2)
    (changed,), _ = run(Contrast(), [np.array([1, 2.0], np.float32)], ([image], [label]))
    assert changed.min() == image.min()
    assert changed.max() == image.max()
    assert (changed == image.max()).sum() > 1


def test_the_mean_of_a_large_channel_far_from_zero_is_accurate() -> None:
    """A sum in single precision would be off by a voxel's whole contrast."""
    image = np.random.default_rng(0).normal(20_000, 1, (1, 64, 128, 128)).astype(np.float32)
    expected = reference(image, np.array([1.25]), around_mean=True)
    changed, _ = Contrast().compute(
        image.copy(), np.zeros((1, 64, 128, 128), np.int16), np.array([1, 1.25], np.float32)
    )
    np.testing.assert_allclose(changed, expected, rtol=0, atol=0.005)  # one rounding at 20 000 is 0.002


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 1000])
def test_extremes_are_found_among_numbers_of_both_signs(size: int) -> None:
    random = np.random.default_rng(size)
    for shift in (-5.0, 0.0, 5.0):
        values = (random.normal(size=size) + shift).astype(np.float32)
        assert extremes(values) == (values.min(), values.max())
    assert extremes(np.array([0.0, -np.inf, np.inf, 1e-40, -1e-40], np.float32)) == (-np.inf, np.inf)
