"""Resampling of a volume along its axes, each voxel from a few others of its row, column and pillar."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_loading.kernels.compiling import compiled

NOT_READY = -1
CUBIC = -0.5  # Catmull-Rom
CUBIC_STEPS = 32  # entries per voxel of the table that DALI's cubic weights are interpolated from


class Taps(NamedTuple):
    """What each voxel of an axis of n is made of: k voxels of the source, k even.

    `places` (k, n) uint32 never decrease along the axis; `weights` (k, n) float32 sum to 1 over k.
    """

    places: np.ndarray
    weights: np.ndarray


def nearest_places(size: int, target: int) -> np.ndarray:
    """The voxel of an axis of `size` under each of `target` equal parts, (target,) uint32.

    Of two that are equally near, the later; whole numbers, so that no rounding decides.
    """
    return ((2 * np.arange(target) + 1) * size // (2 * target)).astype(np.uint32)


def coarse_taps(size: int, coarse: int) -> Taps:
    """Down to `coarse` voxels, each the nearest of `size`, and back: linear between their centres."""
    centres = np.clip((np.arange(size) + 0.5) * coarse / size - 0.5, 0, coarse - 1)
    lower = centres.astype(np.int64)
    places = nearest_places(size, coarse)
    share = (centres - lower).astype(np.float32)
    pair = np.stack([places[lower], places[np.minimum(lower + 1, coarse - 1)]])
    return Taps(pair, np.stack([1 - share, share]))


def cubic_taps(size: int, target: int) -> Taps:
    """`target` voxels from `size`, not more, by DALI's cubic filter; the edge voxel is repeated outside."""
    centres = (np.arange(target) + 0.5) * size / target - 0.5
    lower = np.floor(centres)
    offsets = np.arange(-1, 3)[:, np.newaxis]
    table = np.arange(-2 * CUBIC_STEPS, 2 * CUBIC_STEPS + 1) / CUBIC_STEPS
    weights = np.interp(centres - lower - offsets, table, _cubic(table))
    weights /= weights.sum(axis=0)
    places = np.clip(lower + offsets, 0, size - 1)
    return Taps(places.astype(np.uint32), weights.astype(np.float32))


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, from -2 to 2."""
    x = np.abs(distance)
    inner = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
    return np.where(x <= 1, inner, CUBIC * (x**3 - 5 * x**2 + 8 * x - 4))


@compiled
def _row(source: np.ndarray, target: np.ndarray, places: np.ndarray, weights: np.ndarray) -> None:
    """One row (w,) from a row of the source."""
    for k in range(0, len(places), 2):
        first, second, one, other = places[k], places[k + 1], weights[k], weights[k + 1]
        if k == 0:
            for x in range(target.size):
                target[x] = one[x] * source[first[x]] + other[x] * source[second[x]]
        else:
            for x in range(target.size):
                target[x] += one[x] * source[first[x]] + other[x] * source[second[x]]


@compiled
def _sum(rows: np.ndarray, slots: np.ndarray, weights: np.ndarray, target: np.ndarray) -> None:
    """target (n,) = sum over k of weights[k] * rows[slots[k]]."""
    for k in range(0, len(slots), 2):
        first, second, one, other = rows[slots[k]], rows[slots[k + 1]], weights[k], weights[k + 1]
        if k == 0:
            for x in range(target.size):
                target[x] = one * first[x] + other * second[x]
        else:
            for x in range(target.size):
                target[x] += one * first[x] + other * second[x]


@compiled
def _slot_of(place: int, held: np.ndarray, needed: np.ndarray) -> int:
    """Where `place` is held, or may be: a slot whose content is no longer `needed`."""
    for slot in range(held.size):
        if held[slot] == place:
            return slot
    for slot in range(held.size):
        if not (needed == held[slot]).any():
            return slot
    return NOT_READY  # not reached: there are as many slots as places needed


@compiled
def _plane(source: np.ndarray, target: np.ndarray, rows: np.ndarray, height: Taps, width: Taps) -> None:
    """One plane (h, w) from a plane of the source; `rows` (k, w) is scratch."""
    held = np.full(len(rows), NOT_READY, np.int64)
    slots = np.empty(len(rows), np.int64)
    for y in range(len(target)):
        needed = height.places[:, y]
        for k in range(len(rows)):
            slots[k] = _slot_of(needed[k], held, needed)
            if held[slots[k]] != needed[k]:
                held[slots[k]] = needed[k]
                _row(source[needed[k]], rows[slots[k]], width.places, width.weights)
        _sum(rows, slots, height.weights[:, y], target[y])


@compiled
def resample(source: np.ndarray, target: np.ndarray, depth: Taps, height: Taps, width: Taps) -> None:
    """Fill `target` (d, h, w) float32 from `source` (D, H, W) float32.

    Rows and planes resampled so far are kept, in the cache, while the next ones need them. `target` may be
    `source` where no voxel needs a plane that lies before its own and was not needed until then; so it is
    for `coarse_taps`.
    """
    num = len(depth.places)
    rows = np.empty((num, target.shape[2]), np.float32)
    planes = np.empty((num, target.shape[1], target.shape[2]), np.float32)
    flat = planes.reshape(num, -1)
    held = np.full(num, NOT_READY, np.int64)
    slots = np.empty(num, np.int64)
    for z in range(len(target)):
        needed = depth.places[:, z]
        for k in range(num):
            slots[k] = _slot_of(needed[k], held, needed)
            if held[slots[k]] != needed[k]:
                held[slots[k]] = needed[k]
                _plane(source[needed[k]], planes[slots[k]], rows, height, width)
        _sum(flat, slots, depth.weights[:, z], target[z].reshape(-1))


@compiled
def pick(
    source: np.ndarray, target: np.ndarray, depth: np.ndarray, height: np.ndarray, width: np.ndarray
) -> None:
    """target[z, y, x] = source[depth[z], height[y], width[x]], of any type; the places are uint32."""
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            row = source[depth[z], height[y]]
            for x in range(target.shape[2]):
                target[z, y, x] = row[width[x]]
