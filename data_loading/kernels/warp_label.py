"""Affine resampling of label maps: every label trilinear, the largest share wins; or the nearest voxel."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_loading.kernels.compiling import compiled
from data_loading.kernels.warp import keeps_planes, lies_inside, position_limits, row_limits

F = np.float32
MIXED = np.int16(-32768)  # no label: where neighbours disagree and a vote has to follow
OUTSIDE = np.int16(-1)
TIE = F(1e-5)  # shares closer than this are equal: the sums carry roundings of single precision


@compiled
def _brick_label(voxels: np.ndarray, corner: Any, sizes: Any, strides: Any) -> Any:
    """The one label of a brick of a flat int16 volume, or MIXED."""
    first, differ = voxels[np.uint64(corner)], np.int16(0)
    for z in range(sizes[0]):
        for y in range(sizes[1]):
            row = np.uint64(corner + z * strides[0] + y * strides[1])
            if sizes[2] == 8:
                for x in range(8):
                    differ |= first ^ voxels[row + np.uint64(x)]
            else:
                for x in range(sizes[2]):
                    differ |= first ^ voxels[row + np.uint64(x)]
        if differ != 0:
            return MIXED
    return first


@compiled
def uniform_bricks(source: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """For each brick of 8^3 voxels the label that it and its upper neighbours consist of, as int32.

    Bricks are counted from `lower` and end at `upper`, both (3,) int64, in the contiguous (D, H, W) int16
    `source`. MIXED where they hold several labels: a position in any other brick needs no vote.
    """
    area, columns = source.shape[1] * source.shape[2], source.shape[2]
    voxels = source.reshape(-1)
    counts = (upper - lower + 7) >> 3
    own = np.empty((counts[0], counts[1], counts[2]), np.int32)
    for i in range(counts[0]):
        for j in range(counts[1]):
            for k in range(counts[2]):
                z, y, x = lower[0] + 8 * i, lower[1] + 8 * j, lower[2] + 8 * k
                sizes = (min(8, upper[0] - z), min(8, upper[1] - y), min(8, upper[2] - x))
                own[i, j, k] = _brick_label(voxels, z * area + y * columns + x, sizes, (area, columns))
    bricks = own.copy()
    for i in range(counts[0]):
        for j in range(counts[1]):
            for k in range(counts[2]):
                for z in range(i, min(i + 2, counts[0])):
                    for y in range(j, min(j + 2, counts[1])):
                        for x in range(k, min(k + 2, counts[2])):
                            if own[z, y, x] != own[i, j, k]:
                                bricks[i, j, k] = MIXED
    return bricks


@compiled
def _needed(shape: Any, wanted: Any, matrix: np.ndarray, origin: np.ndarray, base: np.ndarray) -> Any:
    """Corner and end, (3,) int64, of the part of a volume of `shape` that a target of `wanted` reaches."""
    lower, upper = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        reach = origin[axis]
        for other in range(3):
            reach += max(matrix[axis, other], F(0)) * F(wanted[other] - 1)
        lower[axis] = min(max(base[axis], 0), shape[axis])
        upper[axis] = max(min(base[axis] + int(reach) + 2, shape[axis]), lower[axis])
    return lower, upper


@compiled
def warp_label(
    source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray, base: np.ndarray
) -> None:
    """What `warp_image` does, for one contiguous int16 label map (D, H, W); -1 outside.

    Where the neighbours agree, which is nearly everywhere, nothing is weighed.
    """
    depth, height, width = target.shape
    area, columns = source.shape[1] * source.shape[2], source.shape[2]
    voxels = source.reshape(-1)
    cell = np.empty((2, 8), np.float32)
    is_in_plane = keeps_planes(matrix, origin)
    limits = position_limits(source.shape, base, is_in_plane)
    is_whole = lies_inside(target.shape, matrix, origin, limits[0])
    strides = (np.uint64(columns), np.uint64(0 if is_in_plane else area))
    lower, upper = _needed(source.shape, target.shape, matrix, origin, base)
    bricks = uniform_bricks(source, lower, upper)
    labels = bricks.reshape(-1)
    brick_columns, brick_area = bricks.shape[2], bricks.shape[1] * bricks.shape[2]
    shift = base - lower
    corner = base[0] * area + base[1] * columns + base[2]
    dz, dy, dx = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for z in range(depth):
        for y in range(height):
            oz = origin[0] + matrix[0, 0] * F(z) + matrix[0, 1] * F(y)
            oy = origin[1] + matrix[1, 0] * F(z) + matrix[1, 1] * F(y)
            ox = origin[2] + matrix[2, 0] * F(z) + matrix[2, 1] * F(y)
            out = target[z, y]
            touch, first, last, leave = 0, 0, width, width
            if not is_whole:
                touch, first, last, leave = row_limits(origin, matrix, limits, (z, y, width))
            out[:touch] = OUTSIDE
            out[leave:] = OUTSIDE
            for x in range(touch, first):
                out[x] = vote_at(source, (oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)), base, cell)
            for x in range(last, leave):
                out[x] = vote_at(source, (oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)), base, cell)
            for x in range(first, last):
                iz, iy, ix = np.int32(oz + dz * F(x)), np.int32(oy + dy * F(x)), np.int32(ox + dx * F(x))
                brick = ((iz + shift[0]) >> 3) * brick_area + ((iy + shift[1]) >> 3) * brick_columns
                out[x] = labels[np.uint64(brick + ((ix + shift[2]) >> 3))]
            for x in range(first, last):
                if out[x] == MIXED:
                    pz, py, px = oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)
                    low = np.uint64(corner + np.int32(pz) * area + np.int32(py) * columns + np.int32(px))
                    if _neighbours_agree(voxels, low, strides):
                        out[x] = voxels[low]
                    else:
                        out[x] = vote_at(source, (pz, py, px), base, cell)


@compiled
def _neighbours_agree(voxels: np.ndarray, low: Any, strides: Any) -> Any:
    """Whether the eight voxels from index `low` of a flat volume have one label."""
    columns, area = strides
    high, one = low + area, np.uint64(1)
    first = voxels[low]
    differ = (first ^ voxels[low + one]) | (first ^ voxels[low + columns])
    differ |= (first ^ voxels[low + columns + one]) | (first ^ voxels[high])
    differ |= (first ^ voxels[high + one]) | (first ^ voxels[high + columns])
    return (differ | (first ^ voxels[high + columns + one])) == 0


@compiled
def _label_or_outside(volume: np.ndarray, z: int, y: int, x: int) -> Any:
    if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
        return volume[z, y, x]
    return OUTSIDE


@compiled
def vote_at(volume: np.ndarray, position: tuple[Any, Any, Any], base: np.ndarray, cell: np.ndarray) -> Any:
    """The label of (D, H, W) int16 with the largest trilinear share at a position; ties go to the nearest.

    `cell` is (2, 8) float32 to work in: labels of the eight neighbours, and their weights.
    """
    pz, py, px = position
    iz, iy, ix = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
    fz, fy, fx = pz - F(iz), py - F(iy), px - F(ix)
    iz, iy, ix = iz + base[0], iy + base[1], ix + base[2]
    if not (-1 <= iz < volume.shape[0] and -1 <= iy < volume.shape[1] and -1 <= ix < volume.shape[2]):
        return OUTSIDE
    labels, weights = cell[0], cell[1]
    nearest = 0
    for one in range(8):
        z, y, x = one >> 2, (one >> 1) & 1, one & 1
        labels[one] = _label_or_outside(volume, iz + z, iy + y, ix + x)
        weights[one] = (fz if z else F(1) - fz) * (fy if y else F(1) - fy) * (fx if x else F(1) - fx)
        if weights[one] > weights[nearest]:
            nearest = one
    share = _share(labels, weights, labels[nearest])
    winner = labels[nearest]
    if share > F(0.5) + TIE:
        return np.int16(winner)
    for one in range(8):
        own = _share(labels, weights, labels[one])
        if own > share + TIE:
            share, winner = own, labels[one]
    return np.int16(winner)


@compiled
def _share(labels: np.ndarray, weights: np.ndarray, label: Any) -> Any:
    total = F(0)
    for one in range(8):
        total += weights[one] if labels[one] == label else F(0)
    return total


@compiled
def warp_label_nearest(
    source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray, base: np.ndarray
) -> None:
    """The same with the label of the nearest voxel."""
    depth, height, width = target.shape
    for z in range(depth):
        for y in range(height):
            oz = origin[0] + matrix[0, 0] * F(z) + matrix[0, 1] * F(y) + F(0.5)
            oy = origin[1] + matrix[1, 0] * F(z) + matrix[1, 1] * F(y) + F(0.5)
            ox = origin[2] + matrix[2, 0] * F(z) + matrix[2, 1] * F(y) + F(0.5)
            for x in range(width):
                pz, py, px = (
                    oz + matrix[0, 2] * F(x),
                    oy + matrix[1, 2] * F(x),
                    ox + matrix[2, 2] * F(x),
                )
                iz, iy, ix = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
                target[z, y, x] = _label_or_outside(source, iz + base[0], iy + base[1], ix + base[2])
