"""Dilation of a binary volume by a ball, in time that hardly depends on its radius."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_loading.kernels.compiling import compiled

LARGEST_RADIUS = 10  # voxels; sums of squared distances have to fit into eight bits


@compiled
def _take_nearer(target: np.ndarray, source: np.ndarray, squared: Any) -> None:
    """target = min(target, source + squared), for uint8 rows."""
    for place in range(target.size):
        target[place] = min(target[place], np.uint8(source[place] + squared))


@compiled
def dilate_by_ball(mask: np.ndarray, radius: float) -> np.ndarray:
    """Bool (D, H, W): where a voxel of `mask` lies at most `radius` voxels away; beyond the border lies none.

    `mask` is contiguous and boolean, `radius` at most LARGEST_RADIUS. The squared distance to the nearest
    voxel is built up axis by axis, as far as the radius reaches, in bytes: vector units take many at a time.
    """
    depth, height, width = mask.shape
    limit = int(radius * radius)
    reach = int(np.sqrt(limit))
    in_plane = np.empty((depth, height, width), np.uint8)
    start = np.empty((height, width), np.uint8)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                start[y, x] = 0 if mask[z, y, x] else (reach + 1) * (reach + 1)
        along = start.copy()
        for step in range(1, min(reach, width - 1) + 1):
            squared = np.uint8(step * step)
            for y in range(height):
                _take_nearer(along[y, : width - step], start[y, step:], squared)
                _take_nearer(along[y, step:], start[y, : width - step], squared)
        plane = in_plane[z]
        plane[:] = along
        for step in range(1, min(reach, height - 1) + 1):
            squared = np.uint8(step * step)
            _take_nearer(plane[: height - step].reshape(-1), along[step:].reshape(-1), squared)
            _take_nearer(plane[step:].reshape(-1), along[: height - step].reshape(-1), squared)
    reached = np.empty((depth, height, width), np.bool_)
    for z in range(depth):
        nearest = in_plane[z].copy().reshape(-1)
        for step in range(1, reach + 1):
            squared = np.uint8(step * step)
            if z >= step:
                _take_nearer(nearest, in_plane[z - step].reshape(-1), squared)
            if z + step < depth:
                _take_nearer(nearest, in_plane[z + step].reshape(-1), squared)
        out = reached[z].reshape(-1)
        for place in range(nearest.size):
            out[place] = nearest[place] <= limit
    return reached


@compiled
def repaint(labels: np.ndarray, covered: np.ndarray, label: int) -> None:
    """Give `label` to the voxels of (D, H, W) int16 that `covered` marks, in place, and 0 to its others."""
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if covered[z, y, x]:
                    labels[z, y, x] = label
                elif labels[z, y, x] == label:
                    labels[z, y, x] = 0


@compiled
def count_voxels(components: np.ndarray, number: int) -> np.ndarray:
    """Voxels (number + 1,) of each component of (D, H, W) int32; place 0 is what belongs to none."""
    counts = np.zeros(number + 1, np.int64)
    for z in range(components.shape[0]):
        for y in range(components.shape[1]):
            for x in range(components.shape[2]):
                counts[components[z, y, x]] += 1
    return counts
