"""Views of a window that differ by mirroring, for test-time augmentation."""

from __future__ import annotations

from itertools import chain, combinations

from utils.contracts import Shape


def mirrored_axes(patch: Shape) -> tuple[tuple[int, ...], ...]:
    """Every set of axes to flip in (B, C, D, H, W), the identity first: 8 in 3-D, 4 for a one-slice patch."""
    axes = [axis + 2 for axis, size in enumerate(patch) if size > 1]
    return tuple(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
