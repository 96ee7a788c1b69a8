"""Separable Gaussian blur of a volume in place, in one pass over memory."""

from __future__ import annotations

import numpy as np

from data_loading.kernels.compiling import compiled

PAIR = 2  # taps on each side that one loop takes together


def half_kernel(sigma: float, radius: int) -> np.ndarray:
    """The Gaussian's weights from its centre outwards, float32; with both sides they sum to 1.

    Their number is 1 + an even number: a weight of 0 is added behind an odd `radius`.
    """
    distances = np.arange(radius + 1)
    weights = np.exp(-0.5 * (distances / sigma) ** 2) if radius else np.ones(1)
    weights /= weights[0] + 2 * weights[1:].sum()
    return np.pad(weights, (0, radius % PAIR)).astype(np.float32)


@compiled
def _reflected(place: int, size: int) -> int:
    """The voxel that stands for `place` beyond a border, without repeating the edge voxel."""
    if size == 1:
        return 0
    place = abs(place) % (2 * size - 2)
    return min(place, 2 * size - 2 - place)


@compiled
def _combine(
    target: np.ndarray, source: np.ndarray, first: int, offsets: np.ndarray, weights: np.ndarray
) -> None:
    """target[i] = sum over k of weights[k] * (the source at first + offsets[0, k] + i, and at offsets[1, k]).

    The centre, k = 0, counts once.
    """
    size = target.size
    start = first + offsets[0, 0]
    centre = source[start : start + size]
    if weights.size == 1:
        target[:] = centre
    for k in range(1, weights.size, PAIR):
        a = source[first + offsets[0, k] : first + offsets[0, k] + size]
        b = source[first + offsets[1, k] : first + offsets[1, k] + size]
        c = source[first + offsets[0, k + 1] : first + offsets[0, k + 1] + size]
        d = source[first + offsets[1, k + 1] : first + offsets[1, k + 1] + size]
        near, far = weights[k], weights[k + 1]
        if k == 1:
            middle = weights[0]
            for i in range(size):
                target[i] = middle * centre[i] + near * (a[i] + b[i]) + far * (c[i] + d[i])
        else:
            for i in range(size):
                target[i] += near * (a[i] + b[i]) + far * (c[i] + d[i])


@compiled
def _steps(number: int, step: int) -> np.ndarray:
    """Offsets of a kernel's taps along one axis, (2, number)."""
    offsets = np.empty((2, number), np.int64)
    for k in range(number):
        offsets[0, k], offsets[1, k] = -k * step, k * step
    return offsets


@compiled
def _blur_plane(
    plane: np.ndarray,
    target: np.ndarray,
    padded: np.ndarray,
    height_weights: np.ndarray,
    width_weights: np.ndarray,
) -> None:
    """Blur (H, W) in plane into `target`, flat, whose rows keep the side margins of `padded`.

    `padded` (2, H + 2 h, W + 2 w) is scratch. Rows lie end to end with their margins, so that each pass is
    one long loop; what it leaves in the margins is never read.
    """
    height, width = plane.shape
    top, side = height_weights.size - 1, width_weights.size - 1
    stride = width + 2 * side
    rows, blurred = padded[0], padded[1]
    for y in range(height):
        row = rows[y]
        row[side : side + width] = plane[y]
        for x in range(side):
            row[x] = plane[y, _reflected(x - side, width)]
            row[side + width + x] = plane[y, _reflected(width + x, width)]
    flat, size = blurred.reshape(-1), height * stride - 2 * side
    start = top * stride + side
    _combine(flat[start : start + size], rows.reshape(-1), side, _steps(side + 1, 1), width_weights)
    for y in range(top):
        blurred[y] = blurred[top + _reflected(y - top, height)]
        blurred[top + height + y] = blurred[top + _reflected(height + y, height)]
    _combine(target, flat, top * stride, _steps(top + 1, stride), height_weights)


@compiled
def blur(
    volume: np.ndarray, depth_weights: np.ndarray, height_weights: np.ndarray, width_weights: np.ndarray
) -> None:
    """Blur (D, H, W) float32 in place, each axis with the half kernel that `half_kernel` gives.

    Planes blurred in plane wait in a ring, a few hundred kilobytes, until those around them have come; so the
    volume is read once and written once. Borders are reflected without repeating the edge voxel.
    """
    depth, height, width = volume.shape
    reach, side = depth_weights.size - 1, width_weights.size - 1
    stride = width + 2 * side
    area, slots = height * stride, 2 * reach + 1
    padded = np.zeros((2, height + 2 * (height_weights.size - 1), stride), np.float32)
    ring = np.empty(slots * area, np.float32)
    offsets = np.empty((2, reach + 1), np.int64)
    ready = 0
    for z in range(depth):
        while ready <= min(z + reach, depth - 1):
            slot = ring[(ready % slots) * area : (ready % slots + 1) * area]
            _blur_plane(volume[ready], slot, padded, height_weights, width_weights)
            ready += 1
        for k in range(reach + 1):
            offsets[0, k] = (_reflected(z - k, depth) % slots) * area
            offsets[1, k] = (_reflected(z + k, depth) % slots) * area
        for y in range(height):
            _combine(volume[z, y], ring, y * stride + side, offsets, depth_weights)
