"""Interpolation of images, labels and probabilities on regular grids, isotropic or slice by slice.

Spline interpolation on a regular grid is separable, so each axis is one small matrix. The matrices come from
`scipy.ndimage.zoom`, hence the values are those of scikit-image's `resize` with edge padding and no
anti-aliasing, at the price of a few matrix products. nnU-Net's torch variants interpolate images linearly:
faster, and not as sharp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
TIE = 1e-5  # shares this close are the same; the margin keeps exact ties independent of rounding
HALF = 0.5 - TIE  # share of a voxel that makes it the nearest
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Rows of an axis's matrix from `start` on, without their far zeros; `first` is the first voxel used."""

    start: int
    first: int
    rows: np.ndarray


@lru_cache(maxsize=128)
def _blocks(size: int, new_size: int, order: int) -> tuple[_Block, ...]:
    weights = axis_weights(size, new_size, order)
    blocks = []
    for start in range(0, new_size, BLOCK_ROWS):
        rows = weights[start : start + BLOCK_ROWS]
        used = np.flatnonzero(rows.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        blocks.append(_Block(start=start, first=first, rows=np.ascontiguousarray(rows[:, first:last])))
    return tuple(blocks)


def _interpolate_axis(volume: np.ndarray, axis: int, new_size: int, order: int) -> np.ndarray:
    """The first or the last axis of an array of two or three axes."""
    size = volume.shape[axis]
    if size == new_size:
        return volume
    shape = list(volume.shape)
    shape[axis] = new_size
    result = np.empty(shape, dtype=np.float32)
    for block in _blocks(size, new_size, order):
        count, width = block.rows.shape
        old, new = slice(block.first, block.first + width), slice(block.start, block.start + count)
        if axis == 0:
            part = volume[old].reshape(width, -1)
            np.matmul(block.rows, part, out=result[new].reshape(count, -1))
        else:
            result[..., new] = np.matmul(volume[..., old], block.rows.T)
    return result


def _interpolate_planes(volume: np.ndarray, height: int, width: int, order: int) -> np.ndarray:
    """The last two axes, plane by plane: what lies between the two steps stays in the cache."""
    if volume.shape[1:] == (height, width):
        return volume
    result = np.empty((volume.shape[0], height, width), dtype=np.float32)
    for plane, finished in zip(volume, result, strict=True):
        finished[...] = _interpolate_axis(_interpolate_axis(plane, 0, height, order), 1, width, order)
    return result


def _interpolate(volume: np.ndarray, new_shape: Shape, order: int) -> np.ndarray:
    """Float32 (D, H, W) to `new_shape`, first what leaves fewer voxels; the same array if nothing changes."""
    depth, height, width = new_shape
    if depth < volume.shape[0]:
        return _interpolate_planes(_interpolate_axis(volume, 0, depth, order), height, width, order)
    return _interpolate_axis(_interpolate_planes(volume, height, width, order), 0, depth, order)


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
        if planes is not volume:
            np.clip(planes, low, high, out=planes)
        channels.append(_stretch(planes, new_shape, coarse))
    return stacked(channels)


def stacked(channels: Sequence[np.ndarray]) -> np.ndarray:
    """(C, D, H, W) from its channels; a single one is not copied."""
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def _resample_linearly(volume: np.ndarray, new_shape: Shape, coarse: int | None) -> np.ndarray:
    # Imported here: who resamples by splines does not wait for torch.
    import torch

    return resample_probability(torch.from_numpy(volume), new_shape, coarse=coarse).numpy()


def resample_label(
    label: np.ndarray, new_shape: Shape, *, coarse: int | None = None, resampling: str = CUBIC
) -> np.ndarray:
    """Linear interpolation of the mask of each label in (D, H, W); the largest share takes the voxel.

    Of labels with equal shares the one of the nearest voxel wins, and the lowest where that is none of them;
    beside images that torch resampled always the lowest. Both are nnU-Net's ways (with batchgenerators
    0.25.5: before, a label won from one half on, and a voxel where three met could stay empty).
    """
    if label.shape == tuple(new_shape):
        return label
    plane_shape = _plane_shape(as_shape(label.shape), new_shape, coarse)
    depth, height, width = (
        _linear_taps(size, new_size) for size, new_size in zip(label.shape, plane_shape, strict=True)
    )
    planes = np.empty(plane_shape, dtype=label.dtype)
    for place, share in enumerate(depth.share):
        near, far = label[depth.lower[place]], label[depth.upper[place]]
        _draw_plane((near, far), float(share), (height, width), planes[place], resampling)
    return _stretch(planes, new_shape, coarse)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Taps:
    """For each new voxel of an axis the two old ones around it, and the share of the upper one."""

    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray


@lru_cache(maxsize=128)
def _linear_taps(size: int, new_size: int) -> _Taps:
    if size == new_size:
        same = np.arange(size)
        return _Taps(lower=same, upper=same, share=np.zeros(size, dtype=np.float32))
    weights = axis_weights(size, new_size, LABEL_ORDER)
    lower = (weights > 0).argmax(axis=1)
    upper = np.minimum(lower + 1, size - 1)
    share = np.where(upper > lower, weights[np.arange(new_size), upper], np.float32(0))
    return _Taps(lower=lower, upper=upper, share=share)


def _draw_plane(
    planes: tuple[np.ndarray, np.ndarray],
    share_of_far: float,
    axes: tuple[_Taps, _Taps],
    result: np.ndarray,
    resampling: str,
) -> None:
    """A new plane between two old ones (H, W): a vote of eight voxels where they are not all the same."""
    (near, far), (height, width) = planes, axes
    np.take(near[height.lower], width.lower, axis=1, out=result)
    mixed = _mixed_cells(near, far)
    rows = np.flatnonzero(np.logical_or.reduce(mixed, axis=1)[height.lower])
    columns = np.flatnonzero(np.logical_or.reduce(mixed, axis=0)[width.lower])
    if rows.size == 0:
        return
    y, x = np.nonzero(mixed[np.ix_(height.lower[rows], width.lower[columns])])
    y, x = rows[y], columns[x]
    values, shares = [], []
    for plane, part in ((near, 1 - share_of_far), (far, share_of_far)):
        for row, row_share in ((height.lower[y], 1 - height.share[y]), (height.upper[y], height.share[y])):
            for column, share in ((width.lower[x], 1 - width.share[x]), (width.upper[x], width.share[x])):
                values.append(plane[row, column])
                shares.append(part * row_share * share)
    # The voxels are counted as binary digits: far or near, lower or upper row, left or right column.
    nearest = 4 * (share_of_far >= HALF) + 2 * (height.share[y] >= HALF) + (width.share[x] >= HALF)
    result[y, x] = _elect(np.stack(values), np.stack(shares), nearest if resampling == CUBIC else None)


def _mixed_cells(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Boolean (H, W): whether a voxel and its next neighbours, in both planes, hold more than one label."""
    apart = near != far
    mixed = apart.copy()
    mixed[:, :-1] |= apart[:, 1:] | (near[:, :-1] != near[:, 1:])
    below = mixed[1:].copy()
    mixed[:-1] |= below | (near[:-1] != near[1:])
    return mixed


def _elect(values: np.ndarray, shares: np.ndarray, nearest: np.ndarray | None) -> np.ndarray:
    """The winner at each of n points among (8, n) voxels with their shares.

    Of labels that tie the one of the voxel with the index `nearest` (n,), else the lowest.
    """
    total = shares.copy()
    for one in range(len(values)):
        for other in range(one):
            is_same = values[one] == values[other]
            total[one] += is_same * shares[other]
            total[other] += is_same * shares[one]
    leads = total >= total.max(axis=0) - TIE
    lowest = np.where(leads, values, np.iinfo(values.dtype).max).min(axis=0)
    if nearest is None:
        return lowest
    points = np.arange(nearest.size)
    return np.where(leads[nearest, points], values[nearest, points], lowest)


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
