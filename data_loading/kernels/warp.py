"""Affine resampling of volumes in one pass, without a grid in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_loading.kernels.compiling import compiled

F = np.float32


@compiled
def _stays_inside(start: Any, step: Any, steps: int, size: int) -> Any:
    """Whether `steps` positions from `start` and their upper neighbours are indices of an axis."""
    last = start + step * F(steps - 1)
    return min(start, last) >= F(0.0) and max(start, last) < F(size - 1)


@compiled
def warp_image(source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray) -> None:
    """target[c, z, y, x] = source[c] at `origin + matrix @ (z, y, x)`, trilinear, 0 outside.

    `source` and `target` are contiguous float32 (C, D, H, W); `matrix` (3, 3) and `origin` (3,) are float32,
    in voxels of the source.
    """
    channels, depth, height, width = target.shape
    planes, rows, columns = source.shape[1], source.shape[2], source.shape[3]
    area = rows * columns
    dz, dy, dx = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for channel in range(channels):
        voxels = source[channel].reshape(-1)
        for z in range(depth):
            for y in range(height):
                oz = origin[0] + matrix[0, 0] * F(z) + matrix[0, 1] * F(y)
                oy = origin[1] + matrix[1, 0] * F(z) + matrix[1, 1] * F(y)
                ox = origin[2] + matrix[2, 0] * F(z) + matrix[2, 1] * F(y)
                out = target[channel, z, y]
                inside = _stays_inside(oz, dz, width, planes) and _stays_inside(oy, dy, width, rows)
                if inside and _stays_inside(ox, dx, width, columns):
                    for x in range(width):
                        pz, py, px = oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)
                        iz, iy, ix = np.int32(pz), np.int32(py), np.int32(px)
                        fz, fy, fx = pz - F(iz), py - F(iy), px - F(ix)
                        low = np.uint32(iz * area + iy * columns + ix)
                        high = np.uint32(low + area)
                        a = voxels[low] + fx * (voxels[low + 1] - voxels[low])
                        b = voxels[low + columns]
                        b += fx * (voxels[low + columns + 1] - b)
                        c = voxels[high] + fx * (voxels[high + 1] - voxels[high])
                        d = voxels[high + columns]
                        d += fx * (voxels[high + columns + 1] - d)
                        a += fy * (b - a)
                        c += fy * (d - c)
                        out[x] = a + fz * (c - a)
                else:
                    for x in range(width):
                        pz, py, px = oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)
                        out[x] = _linear_at(source[channel], pz, py, px)


@compiled
def _linear_at(volume: np.ndarray, pz: Any, py: Any, px: Any) -> Any:
    """The trilinear value of (D, H, W) at a position that may lie outside, where it counts 0."""
    iz, iy, ix = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
    value = F(0.0)
    for z in range(iz, iz + 2):
        for y in range(iy, iy + 2):
            for x in range(ix, ix + 2):
                if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
                    weight = (F(1) - abs(pz - F(z))) * (F(1) - abs(py - F(y))) * (F(1) - abs(px - F(x)))
                    value += weight * volume[z, y, x]
    return value


@compiled
def uniform_bricks(source: np.ndarray) -> np.ndarray:
    """For each brick of 8^3 voxels of (D, H, W) int16 the label that it and its upper neighbours consist of.

    int32; MIXED where they hold several labels. A position inside a uniform brick needs no vote.
    """
    depth, height, width = source.shape
    own = np.empty(((depth + 7) >> 3, (height + 7) >> 3, (width + 7) >> 3), np.int32)
    for i in range(own.shape[0]):
        for j in range(own.shape[1]):
            for k in range(own.shape[2]):
                first = source[i << 3, j << 3, k << 3]
                differ = np.int16(0)
                for z in range(i << 3, min((i << 3) + 8, depth)):
                    for y in range(j << 3, min((j << 3) + 8, height)):
                        row = source[z, y, k << 3 : (k << 3) + 8]
                        for label in row:
                            differ |= first ^ label
                own[i, j, k] = first if differ == 0 else MIXED
    bricks = own.copy()
    for i in range(own.shape[0]):
        for j in range(own.shape[1]):
            for k in range(own.shape[2]):
                for z in range(i, min(i + 2, own.shape[0])):
                    for y in range(j, min(j + 2, own.shape[1])):
                        for x in range(k, min(k + 2, own.shape[2])):
                            if own[z, y, x] != own[i, j, k]:
                                bricks[i, j, k] = MIXED
    return bricks


@compiled
def warp_label(source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray) -> None:
    """The same for one int16 label map (D, H, W): every label trilinear, the largest wins; -1 outside.

    Where the neighbours agree, which is nearly everywhere, nothing is weighed.
    """
    depth, height, width = target.shape
    planes, rows, columns = source.shape
    area = rows * columns
    voxels = source.reshape(-1)
    bricks = uniform_bricks(source)
    brick_columns = bricks.shape[2]
    brick_area = bricks.shape[1] * brick_columns
    labels = bricks.reshape(-1)
    dz, dy, dx = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for z in range(depth):
        for y in range(height):
            oz = origin[0] + matrix[0, 0] * F(z) + matrix[0, 1] * F(y)
            oy = origin[1] + matrix[1, 0] * F(z) + matrix[1, 1] * F(y)
            ox = origin[2] + matrix[2, 0] * F(z) + matrix[2, 1] * F(y)
            out = target[z, y]
            inside = _stays_inside(oz, dz, width, planes) and _stays_inside(oy, dy, width, rows)
            if inside and _stays_inside(ox, dx, width, columns):
                for x in range(width):
                    iz, iy, ix = np.int32(oz + dz * F(x)), np.int32(oy + dy * F(x)), np.int32(ox + dx * F(x))
                    brick = (iz >> 3) * brick_area + (iy >> 3) * brick_columns + (ix >> 3)
                    out[x] = labels[np.uint32(brick)]
                for x in range(width):
                    if out[x] == MIXED:
                        pz, py, px = oz + dz * F(x), oy + dy * F(x), ox + dx * F(x)
                        low = np.uint32(np.int32(pz) * area + np.int32(py) * columns + np.int32(px))
                        if _neighbours_agree(voxels, low, columns, area):
                            out[x] = voxels[low]
                        else:
                            out[x] = vote_at(source, pz, py, px)
            else:
                for x in range(width):
                    out[x] = vote_at(source, oz + dz * F(x), oy + dy * F(x), ox + dx * F(x))


@compiled
def warp_label_nearest(
    source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray
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
                target[z, y, x] = _label_or_outside(
                    source, int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
                )


@compiled
def _neighbours_agree(voxels: np.ndarray, low: int, columns: int, area: int) -> bool:
    """Whether the eight voxels from index `low` of a flat volume have one label."""
    high = np.uint32(low + area)
    first = voxels[low]
    differ = (first ^ voxels[low + 1]) | (first ^ voxels[low + columns])
    differ |= (first ^ voxels[low + columns + 1]) | (first ^ voxels[high])
    differ |= (first ^ voxels[high + 1]) | (first ^ voxels[high + columns])
    return (differ | (first ^ voxels[high + columns + 1])) == 0


MIXED = np.int16(-32768)  # no label: where neighbours disagree and a vote has to follow
OUTSIDE = np.int16(-1)


@compiled
def _label_or_outside(volume: np.ndarray, z: int, y: int, x: int) -> Any:
    if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
        return volume[z, y, x]
    return OUTSIDE


@compiled
def vote_at(volume: np.ndarray, pz: Any, py: Any, px: Any) -> Any:
    """The label of (D, H, W) int16 with the largest trilinear share at a position; ties go to the nearest."""
    iz, iy, ix = int(np.floor(pz)), int(np.floor(py)), int(np.floor(px))
    fz, fy, fx = pz - F(iz), py - F(iy), px - F(ix)
    best_share, winner, best_single = F(-1.0), OUTSIDE, F(-1.0)
    for one in range(8):
        z, y, x = one >> 2, (one >> 1) & 1, one & 1
        label = _label_or_outside(volume, iz + z, iy + y, ix + x)
        single = (fz if z else F(1) - fz) * (fy if y else F(1) - fy) * (fx if x else F(1) - fx)
        share = F(0.0)
        for other in range(8):
            z, y, x = other >> 2, (other >> 1) & 1, other & 1
            if _label_or_outside(volume, iz + z, iy + y, ix + x) == label:
                share += (fz if z else F(1) - fz) * (fy if y else F(1) - fy) * (fx if x else F(1) - fx)
        if share > best_share + TIE or (share > best_share - TIE and single > best_single):
            best_share, winner, best_single = max(share, best_share), label, single
    return winner


TIE = F(1e-5)  # shares closer than this are equal: the sums carry roundings of single precision
