"""Zoom: rates and ranges, cubic image and nearest label in the graph and on the host."""

from fractions import Fraction

import numpy as np
import pytest

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.zoom import Zoom
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.contracts import Shape
from utils.errors import UserError

SOLID = DrawContext(patch=(20, 28, 24), num_channels=2)
SLAB = DrawContext(patch=(6, 28, 24), num_channels=2)
SLICE = DrawContext(patch=(1, 28, 24), num_channels=2)
NUMBER = 10_000
TABLE = (
    5e-4  # share of the image's range by which DALI's tabulated filter may differ from the formula, per axis
)


def catmull_rom(samples: np.ndarray, size: int, axis: int) -> np.ndarray:
    """`samples` interpolated at `size` aligned centres by cubics, tangents from the neighbours."""
    number = samples.shape[axis]
    centres = (np.arange(size) + 0.5) * number / size - 0.5
    lower = np.floor(centres).astype(int)
    a, b, c, d = (
        np.moveaxis(samples.take(np.clip(lower + offset, 0, number - 1), axis), axis, -1)
        for offset in (-1, 0, 1, 2)
    )
    t = centres - lower
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.moveaxis(curve, -1, axis)


def cut(array: np.ndarray, part: Shape) -> np.ndarray:
    """The middle of (C, D, H, W); the odd voxel is left behind the part."""
    starts = [(size - kept) // 2 for size, kept in zip(array.shape[1:], part, strict=True)]
    d, h, w = (slice(start, start + kept) for start, kept in zip(starts, part, strict=True))
    return array[:, d, h, w]


def reference_image(image: np.ndarray, part: Shape) -> np.ndarray:
    zoomed = cut(image, part).astype(np.float64)
    for axis, size in enumerate(image.shape[1:], start=1):
        zoomed = catmull_rom(zoomed, size, axis)
    return zoomed


def reference_label(label: np.ndarray, part: Shape) -> np.ndarray:
    places = [
        [int(Fraction(2 * place + 1, 2) * kept / size) for place in range(size)]
        for size, kept in zip(label.shape[1:], part, strict=True)
    ]
    return cut(label, part)[np.ix_(range(len(label)), *places)]


def test_fifteen_samples_in_a_hundred_are_zoomed() -> None:
    """Fewer by those whose middle rounds to the whole patch, 2 in 100."""
    values = draws(Zoom(), NUMBER, DrawContext(patch=(128, 128, 128), num_channels=1))
    assert abs(values[:, 0].mean() - 0.15) < 0.015
    assert (values[values[:, 0] > 0, 4] < 128).all()


def test_the_share_is_uniform_from_seven_tenths_to_one_and_the_same_on_all_axes() -> None:
    values = draws(Zoom(), NUMBER, DrawContext(patch=(1000, 1000, 1000), num_channels=1))
    shares = values[:, 4:] / 1000
    assert np.ptp(shares, axis=1).max() == 0
    assert 0.7 <= shares.min() < 0.702
    assert 0.998 < shares.max() <= 1
    np.testing.assert_allclose(np.quantile(shares[:, 0], [0.25, 0.5, 0.75]), [0.775, 0.85, 0.925], atol=0.006)


def test_a_slice_keeps_its_first_axis() -> None:
    values = draws(Zoom(probability=1), 100, SLICE)
    assert (values[:, 4] == 1).all()
    assert (values[:, 5] < 28).mean() > 0.8


def test_a_slab_is_zoomed_along_its_first_axis_too() -> None:
    """NVIDIA's nnU-Net has one factor for all axes, however thick the slices are."""
    values = draws(Zoom(probability=1), 1000, SLAB)
    np.testing.assert_array_equal(np.unique(values[:, 4]), [4, 5, 6])
    assert np.abs(values[:, 4] - 6 * values[:, 5] / 28).max() <= 0.5 + 6 * 0.5 / 28


def vector(patch: Shape, part: Shape) -> np.ndarray:
    """The drawn vector of a patch that `part` of it fills."""
    return np.array([1, *patch, *part], np.float32)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def test_the_middle_fills_the_patch(run, context: DrawContext) -> None:  # noqa: ANN001
    values = draws(Zoom(probability=1), 30, context)
    drawn = list(values[values[:, 0] > 0][:8])
    made = [random_block(context.patch, 2, seed) for seed in range(8)]
    inputs = [image for image, _ in made], [np.concatenate([label, 1 - label]) for _, label in made]
    images, labels = run(Zoom(), drawn, inputs)
    for place, values in enumerate(drawn):
        part = tuple(values[4:].astype(int).tolist())
        image, label = inputs[0][place], inputs[1][place]
        np.testing.assert_allclose(
            images[place], reference_image(image, part), atol=3 * TABLE * np.ptp(image)
        )
        np.testing.assert_array_equal(labels[place], reference_label(label, part))


def test_graph_and_host_use_the_same_table() -> None:
    """Far closer to each other than to the formula, on noise, where the weights matter most."""
    image = np.random.default_rng(0).normal(size=(1, 48, 48, 48)).astype(np.float32)
    inputs = [image] * 3, [np.zeros(image.shape, np.int16)] * 3
    drawn = [vector((48, 48, 48), (part, part, part)) for part in (34, 41, 47)]
    for graph, host in zip(
        in_graph(Zoom(), drawn, inputs)[0], on_host(Zoom(), drawn, inputs)[0], strict=True
    ):
        np.testing.assert_allclose(graph, host, atol=5e-5)


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_labels_between_two_voxels_are_decided_alike(run) -> None:  # noqa: ANN001
    """From 8 of 10 voxels, two centres of ten lie between two; from 24 of 32 none of a power of two."""
    for patch, part in (
        ((10, 10, 10), (8, 8, 8)),
        ((30, 25, 20), (20, 20, 18)),
        ((32, 32, 32), (24, 24, 24)),
    ):
        label = np.random.default_rng(0).integers(-1, 100, size=(1, *patch)).astype(np.int16)
        drawn = vector(patch, part)
        _, labels = run(Zoom(), [drawn], ([label.astype(np.float32)], [label]))
        np.testing.assert_array_equal(labels[0], reference_label(label, part))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.7, 1.4), (0.9, 0.8)])
def test_zooming_out_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match="low first"):
        Zoom(low=low, high=high)


@pytest.mark.parametrize("shape", [(12, 10, 10), (10, 8, 10)], ids=["larger", "smaller"])
def test_an_image_of_another_shape_than_the_patch_is_refused(shape: Shape) -> None:
    image, label = random_block(shape, 1, seed=0)
    with pytest.raises(ValueError, match=r"zoom: .* \(10, 10, 10\)"):
        Zoom().compute(image, label, vector((10, 10, 10), (9, 9, 9)))
