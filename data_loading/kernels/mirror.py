"""Flips of a volume, and labels that change places, in place."""

from __future__ import annotations

import numpy as np

from data_loading.kernels.compiling import compiled


@compiled
def flip(volume: np.ndarray, flips: np.ndarray) -> None:
    """Reverse the axes of (D, H, W), of any type, where the boolean (3,) `flips` is true; in one pass."""
    depth, height, width = volume.shape
    spare = np.empty(width, volume.dtype)
    for z in range(depth):
        other_z = depth - 1 - z if flips[0] else z
        for y in range(height):
            other_y = height - 1 - y if flips[1] else y
            if (other_z, other_y) < (z, y):
                continue  # exchanged already
            here, there = volume[z, y], volume[other_z, other_y]
            is_pair = (other_z, other_y) != (z, y)
            if flips[2]:
                for x in range(width):
                    spare[x] = there[np.uint32(width - 1 - x)]
                if is_pair:
                    for x in range(width):
                        there[x] = here[np.uint32(width - 1 - x)]
                for x in range(width):
                    here[x] = spare[x]
            elif is_pair:
                for x in range(width):
                    here[x], there[x] = there[x], here[x]


@compiled
def exchange(volume: np.ndarray, partner: np.ndarray) -> None:
    """Replace each label v of (D, H, W) by `partner[v]`; labels below 0 or beyond the table stay."""
    depth, height, width = volume.shape
    number = partner.size
    for z in range(depth):
        for y in range(height):
            row = volume[z, y]
            for x in range(width):
                label = row[x]
                if 0 <= label < number:
                    row[x] = partner[label]
