"""Affine resampling of volumes in one pass, straight from where they are stored, without a grid in memory."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from data_loading.kernels.compiling import compiled
from data_loading.kernels.half import half_to_float

F = np.float32
MIXED = np.int16(-32768)  # no label: where neighbours disagree and a vote has to follow
OUTSIDE = np.int16(-1)
TIE = F(1e-5)  # shares closer than this are equal: the sums carry roundings of single precision


def _number(stored):
    """float32 value of a stored voxel: 16 bits are a half, anything else is a number already."""
    return stored


@overload(_number, inline="always")
def _compile_number(stored):
    if stored == numba.types.uint16:
        return lambda stored: half_to_float(stored)  # pyright: ignore[reportCallIssue]
    return lambda stored: stored


@compiled
def _steps_between(start: Any, step: Any, low: Any, high: Any, steps: int) -> Any:
    """First and end of the x in 0..steps with low <= start + step * x < high."""
    first, last = 0, steps
    if step > F(0):
        first = max(first, int(np.ceil((low - start) / step)))
        last = min(last, int(np.ceil((high - start) / step)))
    elif step < F(0):
        first = max(first, int(np.floor((high - start) / step)))
        last = min(last, int(np.floor((low - start) / step)) + 1)
    # The quotient is rounded; the positions themselves decide, and they are monotonous.
    while first < last and not low <= start + step * F(first) < high:
        first += 1
    while first < last and not low <= start + step * F(last - 1) < high:
        last -= 1
    return first, last


@compiled
def _row(
    origin: np.ndarray, matrix: np.ndarray, size: np.ndarray, margin: Any, place: tuple[int, int, int]
) -> Any:
    """First and end of the x in a row whose positions lie inside, or at most `margin` outside.

    Both are the end of the row where none does.
    """
    z, y, steps = place
    first, last = 0, steps
    for axis in range(3):
        start = origin[axis] + matrix[axis, 0] * F(z) + matrix[axis, 1] * F(y)
        low, high = size[axis, 0] - margin, size[axis, 1] + margin
        begin, end = _steps_between(start, matrix[axis, 2], low, high, steps)
        first, last = max(first, begin), min(last, end)
    return (first, last) if first < last else (steps, steps)


@compiled
def _inside(shape: tuple[int, int, int], base: np.ndarray) -> np.ndarray:
    """(3, 2) float32: first position and end, counted from `base`, that have all neighbours in the volume."""
    limits = np.empty((3, 2), np.float32)
    for axis in range(3):
        limits[axis, 0] = -base[axis]
        limits[axis, 1] = shape[axis] - 1 - base[axis]
    return limits


@compiled
def _lies_inside(
    shape: tuple[int, int, int], matrix: np.ndarray, origin: np.ndarray, limits: np.ndarray
) -> bool:
    """Whether every position of a target does, with a little to spare: then no row needs a look."""
    spare = F(1e-3)
    for axis in range(3):
        low = high = origin[axis]
        for other in range(3):
            step = matrix[axis, other] * F(shape[other] - 1)
            low += min(step, F(0))
            high += max(step, F(0))
        if low < limits[axis, 0] + spare or high > limits[axis, 1] - spare:
            return False
    return True


@compiled
def warp_image(
    source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray, base: np.ndarray
) -> None:
    """target[c, z, y, x] = source[c] at `base + origin + matrix @ (z, y, x)`, trilinear, 0 outside.

    `source` (C, D, H, W) is contiguous, float32 or the uint16 bits of halves; `target` is contiguous float32.
    `matrix` (3, 3) and `origin` (3,) are float32, in voxels of the source; `base` (3,) int64 keeps `origin`
    small and not negative for all of the target, so that single precision suffices in a large volume.
    """
    channels, depth, height, width = target.shape
    columns = source.shape[3]
    area = source.shape[2] * columns
    inside = _inside(source.shape[1:], base)
    is_whole = _lies_inside(target.shape[1:], matrix, origin, inside)
    corner = base[0] * area + base[1] * columns + base[2]
    dz, dy, dx = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for channel in range(channels):
        voxels = source[channel].reshape(-1)
        for z in range(depth):
            for y in range(height):
                oz = origin[0] + matrix[0, 0] * F(z) + matrix[0, 1] * F(y)
                oy = origin[1] + matrix[1, 0] * F(z) + matrix[1, 1] * F(y)
                ox = origin[2] + matrix[2, 0] * F(z) + matrix[2, 1] * F(y)
                out = target[channel, z, y]
                touch, leave = 0, width
                first, last = 0, width
                if not is_whole:
                    touch, leave = _row(origin, matrix, inside, F(1), (z, y, width))
                    first, last = _row(origin, matrix, inside, F(0), (z, y, width))
                    first, last = min(first, leave), min(last, leave)
                out[:touch] = F(0)
                out[leave:] = F(0)
                for x in range(touch, first):
                    out[x] = _linear_at(source[channel], oz + dz * F(x), oy + dy * F(x), ox + dx * F(x), base)
                for x in range(last, leave):
                    out[x] = _linear_at(source[channel], oz + dz * F(x), oy + dy * F(x), ox + dx * F(x), base)
                for x in range(first, last):
                    pz, py, px = oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)
                    iz, iy, ix = np.int32(pz), np.int32(py), np.int32(px)
                    fz, fy, fx = pz - F(iz), py - F(iy), px - F(ix)
                    low = np.uint64(corner + iz * area + iy * columns + ix)
                    high = low + np.uint64(area)
                    low_row, high_row = low + np.uint64(columns), high + np.uint64(columns)
                    one = np.uint64(1)
                    a = _number(voxels[low])
                    a += fx * (_number(voxels[low + one]) - a)
                    b = _number(voxels[low_row])
                    b += fx * (_number(voxels[low_row + one]) - b)
                    c = _number(voxels[high])
                    c += fx * (_number(voxels[high + one]) - c)
                    d = _number(voxels[high_row])
                    d += fx * (_number(voxels[high_row + one]) - d)
                    a += fy * (b - a)
                    c += fy * (d - c)
                    out[x] = a + fz * (c - a)


@compiled
def _linear_at(volume: np.ndarray, pz: Any, py: Any, px: Any, base: np.ndarray) -> Any:
    """The trilinear value of (D, H, W) at a position that may lie outside, where it counts 0."""
    iz, iy, ix = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
    value = F(0.0)
    for k in range(iz, iz + 2):
        for j in range(iy, iy + 2):
            for i in range(ix, ix + 2):
                z, y, x = k + base[0], j + base[1], i + base[2]
                if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
                    weight = (F(1) - abs(pz - F(k))) * (F(1) - abs(py - F(j))) * (F(1) - abs(px - F(i)))
                    value += weight * _number(volume[z, y, x])
    return value


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
def warp_label(
    source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray, base: np.ndarray
) -> None:
    """The same for one contiguous int16 label map (D, H, W): the label of the largest share; -1 outside.

    Where the neighbours agree, which is nearly everywhere, nothing is weighed.
    """
    depth, height, width = target.shape
    area, columns = source.shape[1] * source.shape[2], source.shape[2]
    voxels = source.reshape(-1)
    inside, cell = _inside(source.shape, base), np.empty((2, 8), np.float32)
    is_whole = _lies_inside(target.shape, matrix, origin, inside)
    lower, upper = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        reach = origin[axis]
        for other in range(3):
            reach += max(matrix[axis, other], F(0)) * F(target.shape[other] - 1)
        lower[axis] = min(max(base[axis], 0), source.shape[axis])
        upper[axis] = max(min(base[axis] + int(reach) + 2, source.shape[axis]), lower[axis])
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
            touch, leave = 0, width
            first, last = 0, width
            if not is_whole:
                touch, leave = _row(origin, matrix, inside, F(1), (z, y, width))
                first, last = _row(origin, matrix, inside, F(0), (z, y, width))
                first, last = min(first, leave), min(last, leave)
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
                    if _neighbours_agree(voxels, low, np.uint64(columns), np.uint64(area)):
                        out[x] = voxels[low]
                    else:
                        out[x] = vote_at(source, (pz, py, px), base, cell)


@compiled
def _neighbours_agree(voxels: np.ndarray, low: Any, columns: Any, area: Any) -> Any:
    """Whether the eight voxels from index `low` of a flat volume have one label."""
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
