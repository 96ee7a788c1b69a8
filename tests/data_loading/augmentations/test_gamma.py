"""Gamma and inverted gamma: exponents as in nnU-Net v2, a fast power, mean and deviation kept."""

import numpy as np
import pytest
from scipy import stats

from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.augmentations.gamma import Gamma
from data_loading.augmentations.inverted_gamma import InvertedGamma
from data_loading.kernels.intensity import mean_and_std, power
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.errors import UserError

CONTEXT = DrawContext(patch=(9, 10, 11), num_channels=3)
PARTS = [Gamma(), InvertedGamma()]
RUNS = [in_graph, on_host]


def reference(channel: np.ndarray, exponent: float) -> np.ndarray:
    """batchgeneratorsv2's definition, in double precision."""
    values = channel.astype(np.float64)
    mean, std = values.mean(), values.std(ddof=1)
    span = max(np.ptp(values), 1e-7)
    raised = ((values - values.min()) / span) ** exponent * span + values.min()
    return (raised - raised.mean()) * std / max(raised.std(ddof=1), 1e-7) + mean


def expected_of(part: Augmentation, image: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    sign = -1 if isinstance(part, InvertedGamma) else 1
    pairs = zip(image, exponents.astype(np.float64), strict=True)
    return np.stack([sign * reference(sign * channel, exponent) for channel, exponent in pairs])


@pytest.mark.parametrize(("part", "rate"), [(Gamma(), 0.3), (InvertedGamma(), 0.1)])
def test_exponents_per_channel_are_half_below_and_half_above_one(part: Augmentation, rate: float) -> None:
    drawn = draws(part, 10_000, CONTEXT)
    assert abs(drawn[:, 0].mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / 10_000)
    exponents = drawn[:, 1:].ravel()
    assert exponents.size == 30_000
    assert abs((exponents < 1).mean() - 0.5) < 0.012
    assert stats.kstest(exponents[exponents < 1], "uniform", args=(0.7, 0.3)).pvalue > 0.001
    assert stats.kstest(exponents[exponents >= 1], "uniform", args=(1.0, 0.5)).pvalue > 0.001


@pytest.mark.parametrize("part", [Gamma, InvertedGamma])
def test_a_range_that_is_none_is_refused(part: type[Gamma] | type[InvertedGamma]) -> None:
    with pytest.raises(UserError, match=f"^{part.name}: .* low=0, high=1.5"):
        part(low=0)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_voxels_are_those_of_the_definition(part: Augmentation, run) -> None:  # noqa: ANN001
    image, label = random_block(CONTEXT.patch, 3, seed=1)
    image += np.array([0.0, 30.0, -50.0], np.float32)[:, None, None, None]
    drawn = np.array([1, 0.7, 1.13, 1.5], np.float32)
    (changed,), (kept,) = run(part, [drawn], ([image], [label]))
    np.testing.assert_allclose(changed, expected_of(part, image, drawn[1:]), rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(kept, label)


def test_inverted_gamma_is_not_gamma() -> None:
    image, label = random_block(CONTEXT.patch, 1, seed=3)
    drawn = np.array([1, 1.5], np.float32)
    one, other = (on_host(part, [drawn], ([image], [label]))[0][0] for part in PARTS)
    assert np.abs(one - other).max() > 0.5


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_patch_of_many_blocks_keeps_mean_and_deviation(part: Augmentation) -> None:
    image = np.random.default_rng(0).normal(3, 2, (1, 40, 111, 113)).astype(np.float32)
    drawn = np.array([1, 1.5], np.float32)
    changed, _ = part.compute(image.copy(), np.zeros((1, 40, 111, 113), np.int16), drawn)
    assert abs(changed.mean(dtype=np.float64) - image.mean(dtype=np.float64)) < 1e-6
    assert abs(changed.std(dtype=np.float64) / image.std(dtype=np.float64) - 1) < 1e-6
    np.testing.assert_allclose(changed, expected_of(part, image, drawn[1:]), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
@pytest.mark.parametrize("value", [0.0, -3.0, 60_000.0])
def test_a_constant_channel_stays_as_it_is(part: Augmentation, run, value: float) -> None:  # noqa: ANN001
    image = np.full((1, 4, 5, 6), value, np.float32)
    drawn = np.array([1, 0.7], np.float32)
    (changed,), _ = run(part, [drawn], ([image], [np.zeros((1, 4, 5, 6), np.int16)]))
    np.testing.assert_allclose(changed, image, rtol=2e-7)  # DALI rounds the mean once


def test_a_patch_of_one_voxel_stays_as_it_is() -> None:
    image, label = np.full((1, 1, 1, 1), 5, np.float32), np.zeros((1, 1, 1, 1), np.int16)
    for part in PARTS:
        assert part.compute(image.copy(), label, np.array([1, 0.7], np.float32))[0] == 5


@pytest.mark.parametrize("exponent", [0.1, 0.7, 0.93, 1.0, 1.2, 1.5, 4.0])
def test_the_power_is_exact_to_single_precision(exponent: float) -> None:
    random = np.random.default_rng(0)
    near_edges = [1.0, np.nextafter(np.float32(1), np.float32(0)), 0.5, 2**-0.5, 2.0**-126]
    bases = np.concatenate([random.random(3000), 10 ** random.uniform(-37, 0, 3000), near_edges])
    bases, exponent = bases.astype(np.float32), np.float32(exponent)
    expected = bases.astype(np.float64) ** np.float64(exponent)
    computed = np.array([power(base, exponent) for base in bases])
    is_normal = expected > 2.0**-125
    np.testing.assert_allclose(computed[is_normal], expected[is_normal], rtol=2.5e-7)
    assert (computed[~is_normal] < 2.0**-124).all()


def test_the_power_of_zero_is_zero_and_of_one_is_one() -> None:
    for exponent in (0.01, 0.7, 1.0, 9.0):
        assert power(np.float32(0), np.float32(exponent)) == 0
        assert power(np.float32(1e-40), np.float32(exponent)) == 0
        assert power(np.float32(1), np.float32(exponent)) == 1


def test_deviation_far_from_zero_keeps_its_digits() -> None:
    values = np.random.default_rng(1).normal(100_000, 0.5, 100_001).astype(np.float32)
    mean, std = mean_and_std(values)
    exact = values.astype(np.float64)
    assert mean == pytest.approx(exact.mean(), rel=1e-12)
    assert std == pytest.approx(exact.std(ddof=1), rel=1e-9)
