"""Simulated low resolution: rates and ranges, PyTorch's interpolation in the graph and on the host."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.low_resolution import LowResolution
from data_loading.kernels.resample import nearest_places
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.contracts import Shape
from utils.errors import UserError

SOLID = DrawContext(patch=(40, 48, 44), num_channels=2)
SLAB = DrawContext(patch=(8, 48, 44), num_channels=2)
SLICE = DrawContext(patch=(1, 48, 44), num_channels=2)
NUMBER = 10_000


def coarse_of(values: np.ndarray) -> np.ndarray:
    """(number, C, 3) coarse shapes (d, h, w) of drawn vectors."""
    return values[:, 4:].reshape(len(values), -1, 3)[..., ::-1]


def vector(patch: Shape, *coarse: Shape) -> np.ndarray:
    """The drawn vector of a patch whose channels have these coarse shapes."""
    return np.array([1, *patch[::-1], *np.array(coarse)[:, ::-1].ravel()], np.float32)


def exact_places(size: int, coarse: int) -> list[int]:
    """The voxel that holds the centre of each coarse one, in whole numbers."""
    return [int(Fraction(2 * place + 1, 2) * size / coarse) for place in range(coarse)]


def reference(channel: np.ndarray, coarse: Shape) -> np.ndarray:
    """Nearest voxels, then PyTorch's linear interpolation."""
    places = [exact_places(size, number) for size, number in zip(channel.shape, coarse, strict=True)]
    small = torch.from_numpy(channel[np.ix_(*places)].astype(np.float64))[None, None]
    large = interpolate(small, size=channel.shape, mode="trilinear", align_corners=False)
    return large[0, 0].numpy()


def test_a_sample_in_four_is_chosen_and_half_of_its_channels() -> None:
    """Where neither channel is drawn, or none becomes coarser, nothing happens."""
    values = draws(LowResolution(), NUMBER, SOLID)
    is_coarse = (coarse_of(values) != SOLID.patch).any(axis=2)
    rate = 0.25 * 0.75
    assert abs(values[:, 0].mean() - rate) < 0.015 + 0.03 * rate
    assert abs(is_coarse.mean() - 0.5) < 0.025
    assert not ((values[:, 0] > 0) & ~is_coarse.any(axis=1)).any()


def test_the_factor_is_uniform_from_a_half_to_one_and_the_same_on_all_axes() -> None:
    patch = (1000, 1000, 1000)
    context = DrawContext(patch=patch, num_channels=2)
    shapes = coarse_of(draws(LowResolution(probability=1, channel_probability=1), NUMBER, context))
    assert np.ptp(shapes, axis=2).max() == 0
    factors = shapes[..., 0] / 1000
    assert 0.5 <= factors.min() < 0.505
    assert 0.995 < factors.max() <= 1
    np.testing.assert_allclose(factors.mean(axis=0), 0.75, atol=0.01)
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.05


def test_sizes_are_rounded_to_the_nearest_and_halves_to_the_even() -> None:
    part = LowResolution(probability=1, channel_probability=1, low=0.5, high=0.5)
    values = part.draw(np.random.default_rng(0), DrawContext(patch=(5, 7, 10), num_channels=1))
    np.testing.assert_array_equal(coarse_of(values[None])[0, 0], [2, 4, 5])


@pytest.mark.parametrize("context", [SLAB, SLICE], ids=["slab", "slice"])
def test_slabs_and_slices_keep_their_first_axis(context: DrawContext) -> None:
    shapes = coarse_of(draws(LowResolution(probability=1, channel_probability=1), 100, context))
    assert (shapes[..., 0] == context.patch[0]).all()
    assert (shapes[..., 1] < 48).mean() > 0.9


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def test_the_result_is_nearest_down_and_linear_up(run, context: DrawContext) -> None:  # noqa: ANN001
    values = draws(LowResolution(probability=1), 40, context)
    drawn = list(values[values[:, 0] > 0][:8])
    made = [random_block(context.patch, 2, seed) for seed in range(8)]
    images, labels = run(LowResolution(), drawn, ([image for image, _ in made], [label for _, label in made]))
    for place, (image, label) in enumerate(made):
        for channel, coarse in enumerate(coarse_of(drawn[place][None])[0].astype(int).tolist()):
            expected = reference(image[channel], tuple(coarse))
            np.testing.assert_allclose(images[place][channel], expected, atol=5e-5)
        np.testing.assert_array_equal(labels[place], label)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("coarse", [(8, 8, 8), (12, 12, 12), (5, 10, 15), (1, 2, 3), (15, 16, 14)])
def test_equally_near_voxels_are_decided_alike(run, coarse: Shape) -> None:  # noqa: ANN001
    """From 16 to 8 every centre lies between two voxels; rounding must not choose."""
    patch = (16, 16, 16)
    image = np.random.default_rng(0).normal(size=(1, *patch)).astype(np.float32)
    images, _ = run(LowResolution(), [vector(patch, coarse)], ([image], [np.zeros_like(image, np.int16)]))
    np.testing.assert_allclose(images[0][0], reference(image[0], coarse), atol=2e-5)


def test_pytorchs_nearest_exact_agrees_where_no_centre_lies_between_two_voxels() -> None:
    for size, coarse in ((128, 77), (128, 99), (160, 93), (56, 31)):
        chosen = interpolate(torch.arange(size)[None, None].float(), size=coarse, mode="nearest-exact")
        np.testing.assert_array_equal(nearest_places(size, coarse), chosen[0, 0].numpy())


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_a_channel_that_was_not_drawn_keeps_every_bit(run) -> None:  # noqa: ANN001
    image, label = random_block(SOLID.patch, 2, seed=1)
    drawn = vector(SOLID.patch, SOLID.patch, (21, 25, 23))
    images, _ = run(LowResolution(), [drawn], ([image], [label]))
    np.testing.assert_array_equal(images[0][0], image[0])
    assert not np.array_equal(images[0][1], image[1])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 1.2), (0.9, 0.8)])
def test_factors_outside_zero_to_one_are_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match="low first"):
        LowResolution(low=low, high=high)


@pytest.mark.parametrize("shape", [(12, 10, 10), (10, 8, 10)], ids=["larger", "smaller"])
def test_an_image_of_another_shape_than_the_patch_is_refused(shape: Shape) -> None:
    image, label = random_block(shape, 1, seed=0)
    with pytest.raises(ValueError, match=r"low_resolution: .* \(10, 10, 10\)"):
        LowResolution().compute(image, label, vector((10, 10, 10), (5, 5, 5)))
