"""Interpolation against scipy's general routine, and by pencil."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_preprocessing.geometry import as_shape
from data_preprocessing.resampling import (
    axis_weights,
    coarse_axis,
    resample_image,
    resample_label,
    resample_probability,
    resampled_shape,
)

SHAPES = [((17, 23, 9), (30, 20, 9)), ((1, 5, 2), (3, 4, 7)), ((40, 51, 35), (52, 40, 100))]


def zoomed(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = [new / old for new, old in zip(shape, volume.shape, strict=True)]
    result = ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.asarray(result)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_images_equal_the_cubic_spline_of_scipy_clipped_to_the_range(old: tuple, new: tuple) -> None:
    volume = np.random.default_rng(0).normal(0, 1, old).astype(np.float32)
    expected = np.clip(zoomed(volume, new, order=3), volume.min(), volume.max())
    np.testing.assert_allclose(resample_image(volume[None], new)[0], expected, atol=1e-4)


def voted(label: np.ndarray, new: tuple[int, ...], *, way: str) -> np.ndarray:
    """The label with the largest share of one linear map per label; of equal ones the nearest voxel's.

    In torch's ways the lowest.
    """
    values = np.unique(label)
    shares = np.stack([zoomed(label == value, new, order=1) for value in values])
    leads = shares >= shares.max(axis=0) - 1e-5
    lowest = values[leads.argmax(axis=0)]
    if way != "scipy":
        return lowest
    middles = [(np.arange(size) + 0.5) * old / size - 0.5 for old, size in zip(label.shape, new, strict=True)]
    places = [
        np.clip(np.floor(middle + 0.5 + 1e-5).astype(int), 0, old - 1)
        for middle, old in zip(middles, label.shape, strict=True)
    ]
    nearest = label[np.ix_(*places)]
    is_among = (leads & (values[:, None, None, None] == nearest)).any(axis=0)
    return np.where(is_among, nearest, lowest)


@pytest.mark.parametrize("way", ["scipy", "torch"])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_labels_equal_one_linear_map_per_label_of_which_the_largest_wins(
    old: tuple, new: tuple, way: str
) -> None:
    label = np.random.default_rng(0).integers(-1, 3, old).astype(np.int16)
    np.testing.assert_array_equal(resample_label(label, new, resampling=way), voted(label, new, way=way))


@pytest.mark.parametrize("way", ["scipy", "torch"])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_smooth_labels_are_voted_on_as_well(old: tuple, new: tuple, way: str) -> None:
    generator = np.random.default_rng(1)
    fields = [ndimage.gaussian_filter(generator.normal(size=old), 2) for _ in range(4)]
    label = (np.stack(fields).argmax(axis=0) - 1).astype(np.int16)
    np.testing.assert_array_equal(resample_label(label, new, resampling=way), voted(label, new, way=way))


@pytest.mark.parametrize(
    ("label", "nearest", "lowest"),
    [
        ([[[3, 1]]], 1, 1),  # half-way between two voxels the upper one is the nearest
        ([[[1, 3]]], 3, 1),
        ([[[2, 2], [1, 3]]], 2, 2),  # half of the voxel, against a quarter each
        ([[[2, 2], [1, 1]]], 1, 1),
        ([[[1, 1], [2, 2]]], 2, 1),
        ([[[4, 2], [3, 1]]], 1, 1),  # four equal shares: nothing stays empty
        ([[[1, 1], [0, 5]], [[0, 0], [1, 7]]], 0, 0),  # the nearest is none of the two that lead
    ],
)
def test_the_winner_of_a_voxel_between_others(label: list, nearest: int, lowest: int) -> None:
    old = np.array(label, dtype=np.int16)
    # Along each axis the middle one of three voxels lies half-way between two.
    new = as_shape(2 * size - 1 for size in old.shape)
    middle = tuple(size - 1 for size in old.shape)
    assert resample_label(old, new)[middle] == nearest
    assert resample_label(old, new, resampling="torch")[middle] == lowest


def test_an_unchanged_shape_returns_the_very_same_array() -> None:
    image, label = np.ones((1, 2, 3, 4), np.float32), np.ones((2, 3, 4), np.int16)
    assert resample_image(image, (2, 3, 4)) is image
    assert resample_label(label, (2, 3, 4)) is label


def test_the_spline_invents_no_intensity() -> None:
    image = np.zeros((1, 1, 1, 8), np.float32)
    image[..., 4:] = 100
    result = resample_image(image, (1, 1, 21))
    assert result.min() == 0
    assert result.max() == 100


def test_a_constant_image_stays_constant() -> None:
    result = resample_image(np.full((1, 3, 4, 5), 7, np.float32), (5, 3, 9))
    np.testing.assert_allclose(result, 7, rtol=1e-6)


def test_doubling_a_label_doubles_its_edges() -> None:
    label = np.zeros((4, 4, 4), np.int16)
    label[1:3, 1:3, 1:3] = 2
    assert (resample_label(label, (8, 8, 8)) == 2).sum() == pytest.approx(64, abs=8)


def test_the_coarse_axis_repeats_whole_planes() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    result = resample_image(image, (6, 5, 5), coarse=0)
    np.testing.assert_array_equal(result[0, 0::2], result[0, 1::2])


def test_each_plane_of_a_coarse_axis_keeps_its_own_range() -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, 6, 6)).astype(np.float32)
    image[0, 1] += 50
    result = resample_image(image, (2, 11, 11), coarse=0)
    for plane in range(2):
        assert result[0, plane].max() <= image[0, plane].max()
        assert result[0, plane].min() >= image[0, plane].min()


def test_a_label_keeps_to_its_planes_along_a_coarse_axis() -> None:
    label = np.zeros((2, 4, 4), np.int16)
    label[1] = 1
    assert resample_label(label, (4, 4, 4), coarse=0)[:, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), None),  # three times is not more than three times
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), 1),
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),  # two axes tie as coarsest
        ((5.0, 5.0, 1.0), (9.0, 1.0, 1.0), None),  # the current spacing decides first
    ],
)
def test_the_separate_axis_rule(spacing: tuple, target: tuple, expected: int | None) -> None:
    assert coarse_axis(spacing, target) == expected


def test_new_shape_is_rounded_and_never_empty() -> None:
    shape = resampled_shape((10, 10, 1), spacing_mm=(1.0, 1.5, 1.0), target_mm=(1.06, 1.0, 9.0))
    assert shape == (9, 15, 1)


def test_new_shape_may_be_truncated() -> None:
    assert resampled_shape(
        (10, 10, 10), spacing_mm=(1.0, 1.0, 1.0), target_mm=(1.01, 1.0, 1.0), to_whole=int
    ) == (9, 10, 10)


def test_axis_weights_sum_to_one() -> None:
    np.testing.assert_allclose(axis_weights(13, 29, 3).sum(axis=1), 1, rtol=1e-6)


def test_probabilities_are_linear_in_between() -> None:
    probability = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    result = resample_probability(probability, (1, 1, 4))
    assert result.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_probabilities_step_along_a_coarse_axis() -> None:
    probability = torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    assert resample_probability(probability, (4, 1, 1), coarse=0).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_torch_resamples_images_as_the_linear_map_of_scipy(old: tuple, new: tuple) -> None:
    volume = np.random.default_rng(0).normal(0, 1, old).astype(np.float32)
    result = resample_image(volume[None], new, resampling="torch")
    np.testing.assert_allclose(result[0], zoomed(volume, new, order=1), atol=1e-4)
    assert result.dtype == np.float32
    assert not np.allclose(result, resample_image(volume[None], new), atol=0.05)


def test_torch_keeps_a_coarse_axis_apart_where_it_is_named() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    result = resample_image(image, (6, 5, 5), coarse=0, resampling="torch_sepz")
    np.testing.assert_array_equal(result[0, 0::2], result[0, 1::2])


def test_only_torch_without_a_rule_for_it_takes_all_axes_together() -> None:
    axes = [
        coarse_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), resampling=way)
        for way in ("scipy", "torch", "torch_sepz")
    ]
    assert axes == [0, None, 0]
