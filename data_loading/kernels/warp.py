"""Affine resampling of volumes in one pass, straight from where they are stored, without a grid in memory."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from data_loading.kernels.compiling import compiled
from data_loading.kernels.half import half_to_float

F = np.float32


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
    elif not low <= start < high:
        last = 0
    # The quotient is rounded; the positions themselves decide, and they are monotonous.
    while first < last and not low <= start + step * F(first) < high:
        first += 1
    while first < last and not low <= start + step * F(last - 1) < high:
        last -= 1
    return first, last


@compiled
def _row(origin: np.ndarray, matrix: np.ndarray, limits: np.ndarray, place: tuple[int, int, int]) -> Any:
    """First and end of the x in a row whose positions lie within `limits` (3, 2).

    Both are the end of the row where none does.
    """
    z, y, steps = place
    first, last = 0, steps
    for axis in range(3):
        start = origin[axis] + matrix[axis, 0] * F(z) + matrix[axis, 1] * F(y)
        begin, end = _steps_between(start, matrix[axis, 2], limits[axis, 0], limits[axis, 1], steps)
        first, last = max(first, begin), min(last, end)
    return (first, last) if first < last else (steps, steps)


@compiled
def row_limits(origin: np.ndarray, matrix: np.ndarray, limits: np.ndarray, place: Any) -> Any:
    """The x of row (z, y, width) where it begins to touch the volume, lies inside, ceases to, leaves."""
    touch, leave = _row(origin, matrix, limits[1], place)
    first, last = _row(origin, matrix, limits[0], place)
    return touch, min(first, leave), min(last, leave), leave


@compiled
def keeps_planes(matrix: np.ndarray, origin: np.ndarray) -> bool:
    """Whether each plane of a target lies in one of the source, so that the planes beside that weigh 0."""
    is_untouched = matrix[0, 0] == F(1) and matrix[0, 1] == F(0) and matrix[0, 2] == F(0)
    return is_untouched and origin[0] == np.floor(origin[0])


@compiled
def position_limits(shape: tuple[int, int, int], base: np.ndarray, is_in_plane: bool) -> np.ndarray:  # noqa: FBT001
    """(2, 3, 2) float32: first position and end, counted from `base`, of each axis.

    First of the positions that have all neighbours in the volume, then of those that have any. Where the
    planes are kept, a position needs its own alone: the last plane has none above it, and counts.
    """
    limits = np.empty((2, 3, 2), np.float32)
    for axis in range(3):
        limits[0, axis, 0] = -base[axis]
        limits[0, axis, 1] = shape[axis] - 1 - base[axis]
        limits[1, axis, 0] = limits[0, axis, 0] - F(1)
        limits[1, axis, 1] = limits[0, axis, 1] + F(1)
    if is_in_plane:  # positions are whole numbers: half a voxel keeps the limits away from them
        limits[:, 0, 0] = -base[0] - F(0.5)
        limits[:, 0, 1] = shape[0] - base[0] - F(0.5)
    return limits


@compiled
def lies_inside(
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
    is_in_plane = keeps_planes(matrix, origin)
    limits = position_limits(source.shape[1:], base, is_in_plane)
    is_whole = lies_inside(target.shape[1:], matrix, origin, limits[0])
    strides = (np.uint64(columns), np.uint64(0 if is_in_plane else area))
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
                touch, first, last, leave = 0, 0, width, width
                if not is_whole:
                    touch, first, last, leave = row_limits(origin, matrix, limits, (z, y, width))
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
                    out[x] = _trilinear(voxels, low, strides, (fz, fy, fx))


@compiled
def _trilinear(voxels: np.ndarray, low: Any, strides: Any, fractions: Any) -> Any:
    """The value between the eight voxels from index `low` of a flat volume; `strides` of row and plane."""
    columns, area = strides
    fz, fy, fx = fractions
    one, high = np.uint64(1), low + area
    a = _number(voxels[low])
    a += fx * (_number(voxels[low + one]) - a)
    b = _number(voxels[low + columns])
    b += fx * (_number(voxels[low + columns + one]) - b)
    c = _number(voxels[high])
    c += fx * (_number(voxels[high + one]) - c)
    d = _number(voxels[high + columns])
    d += fx * (_number(voxels[high + columns + one]) - d)
    a += fy * (b - a)
    c += fy * (d - c)
    return a + fz * (c - a)


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
