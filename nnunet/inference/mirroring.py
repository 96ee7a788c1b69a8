"""Views of a window that differ by mirroring, for test-time augmentation, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations

from torch import Tensor

from utils.contracts import Plan, Shape
from utils.left_right import OFF, SWAP, image_order, left_right_axis, logit_order


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftRight:
    """What a flip along the axis from left to right does to the channels of a network.

    `axis` is that of (D, H, W). In a view mirrored along it, input channel i is channel `image_order[i]`, and
    channel i of the logits comes from `label_order[i]`: the network calls the left kidney the right one
    there. Without `mirrors` there is no such view.
    """

    axis: int
    mirrors: bool = True
    image_order: tuple[int, ...] = ()
    label_order: tuple[int, ...] = ()


def left_right_of(plan: Plan, choice: str) -> LeftRight:
    """The rule of a plan, where `choice` is swap, off or plain; UserError for an impossible swap."""
    axis, pairs = left_right_axis(plan), plan.left_right_pairs or ()
    if choice != SWAP or not pairs:
        return LeftRight(axis=axis, mirrors=choice != OFF)
    return LeftRight(axis=axis, image_order=image_order(plan, pairs), label_order=logit_order(plan, pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to look at windows (B, C, D, H, W): `axes` flipped, channels in another order; empty: as is."""

    axes: tuple[int, ...] = ()
    image_order: tuple[int, ...] = ()
    label_order: tuple[int, ...] = ()

    def of(self, windows: Tensor) -> Tensor:
        """The windows as this view shows them."""
        return _ordered(windows.flip(self.axes) if self.axes else windows, self.image_order)

    def back(self, logits: Tensor) -> Tensor:
        """The logits of this view on the grid of the windows, each channel in its place."""
        return _ordered(logits.flip(self.axes) if self.axes else logits, self.label_order)


def mirrored_views(patch: Shape, left_right: LeftRight | None = None) -> tuple[View, ...]:
    """A view per set of axes to flip, the identity first: 8 in 3-D, 4 for a one-slice patch.

    Half as many where the axis from left to right is not mirrored.
    """
    special = None if left_right is None else left_right.axis + 2
    axes = [axis + 2 for axis, size in enumerate(patch) if size > 1]
    if left_right is not None and not left_right.mirrors:
        axes = [axis for axis in axes if axis != special]
    sets = chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1))
    return tuple(
        View(axes=flipped)
        if left_right is None or special not in flipped
        else View(axes=flipped, image_order=left_right.image_order, label_order=left_right.label_order)
        for flipped in sets
    )


def _ordered(maps: Tensor, order: tuple[int, ...]) -> Tensor:
    """The channels of (B, C, ...) in another order; untouched where it is the same."""
    return maps if order in ((), tuple(range(maps.shape[1]))) else maps[:, list(order)]
