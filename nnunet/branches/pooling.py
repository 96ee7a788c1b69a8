"""Pooling of feature maps to a grid of cells, or to one number per channel, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.branches.base import check_at_least, check_choice
from utils.errors import UserError

POOLS = ("mean", "max", "both")  # both: the means, then the maxima
MEAN_POOLS = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAX_POOLS = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def pooled_channels(channels: int, pool: str) -> int:
    """Channels of a pooled map."""
    return 2 * channels if pool == "both" else channels


def cells(owner: str, grid: Sequence[int], dims: int) -> tuple[int, ...]:
    """Cells per axis of a map with `dims` axes: one number for all of them, or one for each of three.

    UserError in the name of `owner` for any other number of axes, or a cell count below 1.
    """
    if len(grid) not in (1, 3):
        raise UserError(f"{owner}: grid should be one number, or three as in 4+4+6, got {len(grid)}.")
    for size in grid:
        check_at_least(owner, "grid", size, 1)
    return tuple(grid) * dims if len(grid) == 1 else tuple(grid)[3 - dims :]


def check_pool(owner: str, pool: str) -> None:
    """UserError in the name of `owner` for an unknown way to pool."""
    check_choice(owner, "pool", pool, POOLS)


def pool_to(maps: Tensor, size: tuple[int, ...], pool: str) -> Tensor:
    """(B, C, *size) float32, or (B, 2C, *size) for `both`; a map smaller than `size` repeats its voxels."""
    pooled = []
    if pool != "max":
        pooled.append(_means(maps, size))
    if pool != "mean":
        # A maximum is exact in any type: only the few that remain are converted.
        pooled.append(_maxima(maps, size).float())
    return torch.cat(pooled, dim=1)


def _means(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if set(size) == {1}:
        # Sums in float32 without a copy of the map in float32.
        return maps.mean(dim=tuple(range(2, maps.ndim)), keepdim=True, dtype=torch.float32)
    return MEAN_POOLS[maps.ndim - 2](maps.float(), size)


def _maxima(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if set(size) == {1}:
        return maps.amax(dim=tuple(range(2, maps.ndim)), keepdim=True)
    return MAX_POOLS[maps.ndim - 2](maps, size)
