"""Blur: rates and ranges, SciPy's Gaussian in the graph and on the host."""

import numpy as np
import pytest
from scipy import ndimage

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.blur import Blur
from data_loading.kernels.blur import half_kernel
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.contracts import Shape
from utils.errors import UserError

SOLID = DrawContext(patch=(12, 17, 15), num_channels=2)
SLICE = DrawContext(patch=(1, 17, 15), num_channels=2)
NUMBER = 10_000


def sigmas_of(values: np.ndarray) -> np.ndarray:
    """(number, C, 3) of drawn vectors."""
    return values[:, 1:].reshape(len(values), -1, 3)


def reference(image: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Each channel blurred along each axis of sigma above 0, in double precision."""
    blurred = image.astype(np.float64)
    for channel, of_channel in enumerate(sigmas):
        for axis, sigma in enumerate(of_channel):
            if sigma > 0:
                radius = int(np.ceil(4 * sigma))
                blurred[channel] = ndimage.gaussian_filter1d(
                    blurred[channel], sigma, axis=axis, mode="mirror", radius=radius
                )
    return blurred


def test_a_sample_in_five_is_chosen_and_half_of_its_channels() -> None:
    """Where neither channel is drawn, a quarter of the cases, nothing happens: 0.2 x 0.75 remain."""
    values = draws(Blur(), NUMBER, SOLID)
    assert abs(values[:, 0].mean() - 0.15) < 0.015
    drawn = sigmas_of(values).any(axis=2)
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.all(axis=1).mean() - 0.25) < 0.02
    assert not ((values[:, 0] > 0) & ~drawn.any(axis=1)).any()


def test_sigma_is_uniform_from_a_half_to_one_for_each_channel_and_axis() -> None:
    sigmas = sigmas_of(draws(Blur(probability=1, channel_probability=1), NUMBER, SOLID))
    assert sigmas.min() >= 0.5
    assert sigmas.max() <= 1.0
    np.testing.assert_allclose(sigmas.mean(axis=0), 0.75, atol=0.01)
    np.testing.assert_allclose(sigmas.std(axis=0), 0.5 / np.sqrt(12), atol=0.005)
    correlations = np.corrcoef(sigmas.reshape(NUMBER, 6).T) - np.eye(6)
    assert np.abs(correlations).max() < 0.05


def test_one_sigma_for_all_axes_and_channels_where_asked_for() -> None:
    sigmas = sigmas_of(draws(Blur(same=True, channel_probability=1, low=0.5, high=1.5), 1000, SOLID))
    assert np.ptp(sigmas.reshape(1000, -1), axis=1).max() == 0
    assert sigmas.max() > 1.45


def test_a_slice_is_not_blurred_along_its_depth() -> None:
    sigmas = sigmas_of(draws(Blur(probability=1, channel_probability=1), 100, SLICE))
    assert (sigmas[..., 0] == 0).all()
    assert (sigmas[..., 1:] > 0).all()


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("shape", [(12, 17, 15), (3, 17, 15), (1, 17, 15), (5, 4, 3), (2, 2, 2)])
def test_the_result_is_scipys_with_reflected_borders(run, shape: Shape) -> None:  # noqa: ANN001
    context = DrawContext(patch=shape, num_channels=2)
    values = draws(Blur(probability=1, channel_probability=0.5, high=1.5), 40, context)
    drawn = list(values[values[:, 0] > 0][:12])
    made = [random_block(shape, 2, seed) for seed in range(len(drawn))]
    images, labels = run(Blur(), drawn, ([image for image, _ in made], [label for _, label in made]))
    for place, (image, label) in enumerate(made):
        expected = reference(image, sigmas_of(drawn[place][None])[0])
        np.testing.assert_allclose(images[place], expected, atol=1e-5)
        np.testing.assert_array_equal(labels[place], label)


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_a_channel_that_was_not_drawn_keeps_every_bit(run) -> None:  # noqa: ANN001
    image, label = random_block(SOLID.patch, 2, seed=1)
    drawn = np.array([1, 0, 0, 0, 0.7, 0.8, 0.9], np.float32)
    images, _ = run(Blur(), [drawn], ([image], [label]))
    np.testing.assert_array_equal(images[0][0], image[0])
    assert not np.array_equal(images[0][1], image[1])


@pytest.mark.parametrize(("sigma", "radius"), [(0.5, 2), (0.7, 3), (1.0, 4), (1.5, 6), (0.0, 0)])
def test_a_kernel_sums_to_one_and_has_an_even_number_of_taps_beside_its_centre(
    sigma: float, radius: int
) -> None:
    weights = half_kernel(sigma, radius)
    assert weights.size == 1 + radius + radius % 2
    assert abs(weights[0] + 2 * weights[1:].sum() - 1) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.5), (0.5, float("inf"))])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match=f"blur: .* above 0.* low={low}, high={high}"):
        Blur(low=low, high=high)
