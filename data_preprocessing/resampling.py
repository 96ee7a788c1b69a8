"""Interpolation of images, labels and probabilities on regular grids, isotropic or slice by slice.

Spline interpolation on a regular grid is separable, so each axis is one small matrix. The matrices come from
`scipy.ndimage.zoom`, hence the values are those of scikit-image's `resize` with edge padding and no
anti-aliasing, at the price of a few matrix products. nnU-Net's torch variants interpolate images linearly:
faster, and not as sharp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from data_preprocessing.geometry import as_shape
from utils.contracts import Shape, Spacing

if TYPE_CHECKING:
    from torch import Tensor

ANISOTROPY_LIMIT = (
    3.0  # spacing ratio above which the coarse axis is resampled on its own (Isensee et al. 2021)
)
NEGLIGIBLE_WEIGHT = 1e-7  # a cubic spline weight falls by 0.27 per voxel; smaller ones are below float32
BLOCK_ROWS = 64  # output rows per product, so that far zeros of the matrix are not multiplied
HALF = 0.5 - 1e-5  # share that wins a voxel; the margin keeps exact ties independent of rounding
IMAGE_ORDER, LABEL_ORDER = 3, 1
CUBIC = "scipy"  # of the ways to resample images, the one that is not linear
ALL_AXES = "torch"  # the one that never resamples an axis apart


def resampled_shape(
    shape: Shape, *, spacing_mm: Spacing, target_mm: Spacing, to_whole: Callable[[float], int] = round
) -> Shape:
    """Voxels per axis after resampling: the extent over the new spacing as a whole number, at least one."""
    d, h, w = (
        max(1, to_whole(old / new * size))
        for size, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return d, h, w


def coarse_axis(spacing_mm: Spacing, target_mm: Spacing, *, resampling: str = CUBIC) -> int | None:
    """The axis to resample apart from its planes, or None where all three go together.

    The current spacing decides first, then the target; two or three axes that tie as coarsest do not count.
    The way `ALL_AXES` of a plan's `resampling` has none.
    """
    if resampling == ALL_AXES:
        return None
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_LIMIT:
            return spacing.index(max(spacing)) if spacing.count(max(spacing)) == 1 else None
    return None


@lru_cache(maxsize=128)
def axis_weights(size: int, new_size: int, order: int) -> np.ndarray:
    """Matrix (new_size, size) that interpolates one axis; row sums are 1."""
    unit = np.eye(size)
    weights = np.empty((new_size, size))
    for i in range(size):
        weights[:, i] = ndimage.zoom(unit[i], new_size / size, order=order, mode="nearest", grid_mode=True)
    weights[np.abs(weights) < NEGLIGIBLE_WEIGHT] = 0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def nearest_indices(size: int, new_size: int) -> np.ndarray:
    """For each of `new_size` voxels, the old voxel that holds its centre."""
    return np.minimum(((np.arange(new_size) + 0.5) * size / new_size).astype(np.int64), size - 1)


def _interpolate_axis(volume: np.ndarray, axis: int, new_size: int, order: int) -> np.ndarray:
    size = volume.shape[axis]
    if size == new_size:
        return volume
    weights = axis_weights(size, new_size, order)
    shape = list(volume.shape)
    shape[axis] = new_size
    result = np.empty(shape, dtype=np.float32)
    for start in range(0, new_size, BLOCK_ROWS):
        rows = weights[start : start + BLOCK_ROWS]
        used = np.flatnonzero(rows.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        _multiply_axis(volume, rows[:, first:last], result, axis, first, start)
    return result


def _multiply_axis(  # the block of `result` from `start`, from the voxels of `volume` from `first`
    volume: np.ndarray, rows: np.ndarray, result: np.ndarray, axis: int, first: int, start: int
) -> None:
    stop, last = start + rows.shape[0], first + rows.shape[1]
    if axis == 0:
        part = volume[first:last].reshape(last - first, -1)
        np.matmul(rows, part, out=result[start:stop].reshape(stop - start, -1))
    elif axis == 1:
        result[:, start:stop] = np.matmul(rows, volume[:, first:last])
    else:
        result[..., start:stop] = np.matmul(volume[..., first:last], rows.T)


def _interpolate(volume: np.ndarray, new_shape: Shape, order: int) -> np.ndarray:
    """Float32 (D, H, W) to `new_shape`, the axis that shrinks most first."""
    for axis in sorted(range(3), key=lambda i: new_shape[i] / volume.shape[i]):
        volume = _interpolate_axis(volume, axis, new_shape[axis], order)
    return volume


def _plane_shape(shape: Shape, new_shape: Shape, coarse: int | None) -> Shape:
    """`new_shape` with the coarse axis left as it is."""
    d, h, w = (shape[i] if i == coarse else new_shape[i] for i in range(3))
    return d, h, w


def _stretch(volume: np.ndarray, new_shape: Shape, coarse: int | None) -> np.ndarray:
    """Nearest neighbour along the coarse axis, if there is one."""
    if coarse is None or volume.shape[coarse] == new_shape[coarse]:
        return volume
    return np.take(volume, nearest_indices(volume.shape[coarse], new_shape[coarse]), axis=coarse)


def resample_image(
    image: np.ndarray, new_shape: Shape, *, coarse: int | None = None, resampling: str = CUBIC
) -> np.ndarray:
    """Interpolation of (C, D, H, W) to `new_shape`, float32: by a cubic spline, or linearly by torch.

    The spline must not invent intensities: it is clipped to the range of each channel, of each plane where
    `coarse` names an axis. Returned as it is where the shape does not change.
    """
    if image.shape[1:] == tuple(new_shape):
        return image
    channels = []
    for channel in image:
        volume = np.ascontiguousarray(channel, dtype=np.float32)
        if resampling != CUBIC:
            channels.append(_resample_linearly(volume, new_shape, coarse))
            continue
        kept = tuple(axis for axis in range(3) if axis != coarse)
        low, high = volume.min(axis=kept, keepdims=True), volume.max(axis=kept, keepdims=True)
        planes = _interpolate(volume, _plane_shape(as_shape(volume.shape), new_shape, coarse), IMAGE_ORDER)
        channels.append(_stretch(np.clip(planes, low, high), new_shape, coarse))
    return np.stack(channels)


def _resample_linearly(volume: np.ndarray, new_shape: Shape, coarse: int | None) -> np.ndarray:
    # Imported here: who resamples by splines does not wait for torch.
    import torch

    return resample_probability(torch.from_numpy(volume), new_shape, coarse=coarse).numpy()


def resample_label(label: np.ndarray, new_shape: Shape, *, coarse: int | None = None) -> np.ndarray:
    """Linear interpolation of each label's mask in (D, H, W); a label wins where its share reaches one half.

    Labels are written in ascending order, so the later one wins a tie; where none reaches one half stays 0.
    """
    if label.shape == tuple(new_shape):
        return label
    plane_shape = _plane_shape(as_shape(label.shape), new_shape, coarse)
    planes = np.zeros(plane_shape, dtype=label.dtype)
    values = [int(value) for value in np.unique(label)]
    # Zero is the start value; it is drawn only where it has to win over a negative label.
    for value in values if min(values) < 0 else [v for v in values if v != 0]:
        _draw_label(label, planes, value)
    return _stretch(planes, new_shape, coarse)


def _draw_label(label: np.ndarray, planes: np.ndarray, value: int) -> None:
    """Write `value` into `planes` where its interpolated mask reaches one half, looking only near it."""
    mask = label == value
    old_window, new_window = [], []
    for axis in range(3):
        size, new_size = mask.shape[axis], planes.shape[axis]
        occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        touched = slice(int(occupied[0]), int(occupied[-1]) + 1)
        old_window.append(touched)
        if size != new_size:
            rows = np.flatnonzero(axis_weights(size, new_size, LABEL_ORDER)[:, touched].any(axis=1))
            touched = slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)
        new_window.append(touched)
    share = mask[tuple(old_window)].astype(np.float32)
    for axis in range(3):
        size, new_size = mask.shape[axis], planes.shape[axis]
        if size != new_size:
            weights = axis_weights(size, new_size, LABEL_ORDER)[new_window[axis], old_window[axis]]
            share = np.moveaxis(np.tensordot(weights, share, axes=(1, axis)), 0, axis)
    region = planes[tuple(new_window)]
    region[share >= HALF] = value


def resample_probability(probability: Tensor, new_shape: Shape, *, coarse: int | None = None) -> Tensor:
    """Linear interpolation of one float (D, H, W) map, on the device it lies on: a probability's, mostly."""
    import torch
    from torch.nn import functional

    if tuple(probability.shape) == tuple(new_shape):
        return probability
    sizes = probability.shape
    plane_shape = _plane_shape((sizes[0], sizes[1], sizes[2]), new_shape, coarse)
    volume = probability[None, None].float()
    result = functional.interpolate(volume, size=plane_shape, mode="trilinear", align_corners=False)[0, 0]
    if coarse is not None and sizes[coarse] != new_shape[coarse]:
        indices = torch.from_numpy(nearest_indices(sizes[coarse], new_shape[coarse]))
        result = result.index_select(coarse, indices.to(result.device))
    return result
