"""Noise: rate and strength as in nnU-Net v2, and a generator on the host that is normal and independent."""

import numpy as np
import pytest
from scipy import stats

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.noise import Noise
from tests.data_loading.augmentation_tools import draws, in_graph, on_host
from utils.errors import UserError

CONTEXT = DrawContext(patch=(4, 6, 5), num_channels=2)
SIZE = 2**20


def state(seed: int) -> np.ndarray:
    """A drawn state; small seeds differ in one bit, the hardest case for a hash."""
    return np.array([seed, 0, 0, 0, 0, 0, 0], np.float32)


def host_noise(shape: tuple[int, ...], seed: int, std: float = 1.0) -> np.ndarray:
    drawn = np.array([1.0, std, *state(seed)], np.float32)
    image, _ = Noise().compute(np.zeros(shape, np.float32), np.zeros((1, *shape[1:]), np.int16), drawn)
    return image


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return host_noise((1, 1, 1, SIZE), seed=1).ravel().astype(np.float64)


def test_one_case_in_ten_gets_a_uniform_deviation_up_to_a_tenth() -> None:
    drawn = draws(Noise(), 10_000, CONTEXT)
    assert abs(drawn[:, 0].mean() - 0.1) < 0.012  # 4 standard errors
    deviation = drawn[:, 1]
    assert 0 <= deviation.min() < 0.001
    assert 0.099 < deviation.max() <= 0.1
    assert stats.kstest(deviation, "uniform", args=(0, 0.1)).pvalue > 0.001


def test_the_state_survives_single_precision() -> None:
    words = draws(Noise(), 1000, CONTEXT)[:, 2:]
    assert words.max() < 2**24
    assert len(np.unique(words)) > 6900


def test_moments_of_the_host_noise_are_those_of_the_normal_distribution(sample: np.ndarray) -> None:
    spread = [1, 2, 15, 96]  # variances of the first four powers, of one normal number
    expected = [0, 1, 0, 3]
    for power in range(1, 5):
        error = (sample**power).mean() - expected[power - 1]
        assert abs(error) < 4 * np.sqrt(spread[power - 1] / SIZE)


def test_host_noise_follows_the_normal_distribution_into_its_tails(sample: np.ndarray) -> None:
    assert stats.kstest(sample, "norm").pvalue > 0.001
    for sigma in (2.0, 3.0, 4.0):
        for beyond in ((sample > sigma).sum(), (sample < -sigma).sum()):
            expected = SIZE * stats.norm.sf(sigma)
            assert abs(beyond - expected) < 4 * np.sqrt(expected)
    assert 4.5 < np.abs(sample).max() < 7


@pytest.mark.parametrize("lag", [1, 2, 16, 128, 1024, 16384, SIZE // 2])
def test_voxels_of_the_host_noise_are_independent(sample: np.ndarray, lag: int) -> None:
    near, far = sample[:-lag], sample[lag:]
    for power in (1, 2):
        correlation = np.corrcoef(near**power, far**power)[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(near.size)


def test_channels_of_the_host_noise_are_independent() -> None:
    first, second, third = host_noise((3, 64, 64, 64), seed=2).reshape(3, -1)
    for one, other in ((first, second), (second, third), (first, third)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / 512


@pytest.mark.parametrize("other", [2, 3, 5, 9, 2**23 + 1])
def test_cases_whose_states_differ_by_little_get_independent_noise(sample: np.ndarray, other: int) -> None:
    noise = host_noise((1, 1, 1, SIZE), seed=other).ravel()
    for moved in (noise, np.roll(noise, 1), noise[::-1]):
        assert abs(np.corrcoef(sample, moved)[0, 1]) < 4.5 / np.sqrt(SIZE)
    assert np.isin(noise, sample.astype(np.float32)).mean() < 0.5  # no stretch of it is moved elsewhere


def test_every_word_of_the_state_matters() -> None:
    base = Noise().compute(np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2, 2), np.int16), np.ones(9))
    for place in range(2, 9):
        drawn = np.ones(9, np.float32)
        drawn[place] = 2
        image, label = np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2, 2), np.int16)
        assert (Noise().compute(image, label, drawn)[0] != base[0]).all()


def run_of_slices(number: int) -> np.ndarray:
    """The vectors that slices of one run draw, each from the same random numbers."""
    contexts = [DrawContext(patch=(1, 64, 64), num_channels=1, place=place) for place in range(number)]
    return np.stack([Noise(probability=1).draw(np.random.default_rng(3), context) for context in contexts])


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_slices_of_a_run_get_noise_of_their_own_and_one_strength(run) -> None:  # noqa: ANN001
    drawn = run_of_slices(6)
    assert (drawn[:, :2] == drawn[0, :2]).all()
    image, label = np.zeros((1, 1, 64, 64), np.float32), np.zeros((1, 1, 64, 64), np.int16)
    # Each in a batch of its own: within one, DALI numbers the samples.
    noise = [run(Noise(), [one], ([image.copy()], [label]))[0][0].ravel() for one in drawn]
    correlations = np.corrcoef(noise) - np.eye(6)
    assert np.abs(correlations).max() < 4.5 / 64
    for other in noise[1:]:
        assert np.isin(other, noise[0]).mean() < 0.1  # nor the same numbers at other places
        np.testing.assert_allclose(other.std(), drawn[0, 1], rtol=0.05)


def test_the_state_of_every_slice_of_a_run_is_another_and_survives_single_precision() -> None:
    words = run_of_slices(1000)[:, 2:].astype(np.int64)
    assert (words >= 0).all()
    assert (words < 2**24).all()
    assert all(len(np.unique(column)) == 1000 for column in words.T)


@pytest.mark.parametrize("deviation", [-0.1, float("nan"), float("inf")])
def test_a_deviation_that_is_none_is_refused(deviation: float) -> None:
    with pytest.raises(UserError, match=f"noise: max_std .* from 0, got {deviation}"):
        Noise(max_std=deviation)


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_every_voxel_of_an_odd_number_gets_noise(size: int) -> None:
    noise = host_noise((1, 1, 1, size), seed=4)
    assert (noise != 0).all()
    assert len(np.unique(noise)) == size


def test_noise_is_added_with_the_drawn_deviation() -> None:
    image = np.full((1, 8, 8, 8), 5, np.float32)
    label = np.zeros((1, 8, 8, 8), np.int16)
    unit = host_noise(image.shape, seed=6)
    drawn = np.array([1, 0.25, *state(6)], np.float32)
    changed, _ = Noise().compute(image, label, drawn)
    np.testing.assert_allclose(changed, 5 + 0.25 * unit, rtol=1e-6)


def test_graph_and_host_give_the_same_distribution() -> None:
    shape = (2, 16, 64, 64)
    label = np.zeros((1, *shape[1:]), np.int16)
    drawn = np.array([1, 0.08, *draws(Noise(), 1, CONTEXT)[0, 2:]], np.float32)
    (graph,), _ = in_graph(Noise(), [drawn], ([np.zeros(shape, np.float32)], [label]))
    host, _ = Noise().compute(np.zeros(shape, np.float32), label, drawn)
    assert stats.ks_2samp(graph.ravel(), host.ravel()).pvalue > 0.001
