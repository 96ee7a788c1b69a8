"""Affine resampling of volumes in one pass, without a grid in memory."""

from __future__ import annotations

import numpy as np

from data_loading.kernels.compiling import compiled

F = np.float32


@compiled
def _stays_inside(start: float, step: float, steps: int, size: int) -> bool:
    """Whether start, start + step, ..., `steps` of them, and their upper neighbours are indices of an axis."""
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
def _linear_at(volume: np.ndarray, pz: float, py: float, px: float) -> float:
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
def warp_label(source: np.ndarray, target: np.ndarray, matrix: np.ndarray, origin: np.ndarray) -> None:
    """The same for one int16 label map (D, H, W): every label trilinear, the largest wins; -1 outside.

    Where the eight neighbours agree, which is nearly everywhere, nothing is weighed.
    """
    depth, height, width = target.shape
    planes, rows, columns = source.shape
    area = rows * columns
    voxels = source.reshape(-1)
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
                    low = np.uint32(iz * area + iy * columns + ix)
                    high = np.uint32(low + area)
                    first = voxels[low]
                    differ = (first ^ voxels[low + 1]) | (first ^ voxels[low + columns])
                    differ |= (first ^ voxels[low + columns + 1]) | (first ^ voxels[high])
                    differ |= (first ^ voxels[high + 1]) | (first ^ voxels[high + columns])
                    differ |= first ^ voxels[high + columns + 1]
                    out[x] = first if differ == 0 else MIXED
                for x in range(width):
                    if out[x] == MIXED:
                        out[x] = vote_at(source, oz + dz * F(x), oy + dy * F(x), ox + dx * F(x))
            else:
                for x in range(width):
                    out[x] = vote_at(source, oz + dz * F(x), oy + dy * F(x), ox + dx * F(x))


MIXED = np.int16(-32768)  # no label: where the neighbours disagree and a vote has to follow
OUTSIDE = np.int16(-1)


@compiled
def _label_or_outside(volume: np.ndarray, z: int, y: int, x: int) -> int:
    if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
        return volume[z, y, x]
    return OUTSIDE


@compiled
def vote_at(volume: np.ndarray, pz: float, py: float, px: float) -> int:
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
