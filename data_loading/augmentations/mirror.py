"""Mirroring along each spatial axis (nnU-Net v2, step 10), with labels that know left from right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from nvidia.dali import fn, types

from data_loading.augmentations.base import Augmentation, DrawContext, happens
from data_loading.kernels.mirror import exchange, flip
from utils.contracts import Plan
from utils.errors import UserError
from utils.left_right import OFF, SWAP, left_right_axis, partners

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Mirror(Augmentation):
    """Flips each of `axes` with `probability`: 0 depth, 1 height, 2 width; never the depth of one slice.

    Where `swap_axis` flips, the label values `pairs` (a, b, c, d: a with b, c with d) change places in all
    label maps: a kidney on the left becomes one on the right. `for_plan` fills in both.
    """

    name: ClassVar[str] = "mirror"
    has_twin: ClassVar[bool] = True
    probability: float = 0.5
    axes: tuple[int, ...] = (0, 1, 2)
    swap_axis: int = 2
    pairs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not {*self.axes, self.swap_axis} <= {0, 1, 2}:
            raise UserError(
                f"mirror: axes and swap_axis should be some of 0 (depth), 1 and 2, got {self.axes} and "
                f"{self.swap_axis}."
            )
        if len(self.pairs) % 2 or len(set(self.pairs)) != len(self.pairs) or min(self.pairs, default=1) < 1:
            raise UserError(f"mirror: pairs should be pairs of different labels above 0, got {self.pairs}.")

    def for_plan(self, plan: Plan) -> Mirror:
        """With the plan's pairs of left and right, or without the axis from left to right."""
        axis = left_right_axis(plan)
        if plan.left_right == OFF:
            return replace(self, axes=tuple(other for other in self.axes if other != axis))
        if plan.left_right != SWAP or self.pairs:
            return self
        return replace(self, swap_axis=axis, pairs=tuple(chain.from_iterable(plan.left_right_pairs or ())))

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(any axis flips, depth, height, width)."""
        flips = random.random(3) < self.probability
        flips &= np.array(context.patch) > 1
        flips &= [axis in self.axes for axis in range(3)]
        return np.array([flips.any(), *flips], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """Image and label, flipped alike; labels of a pair change places."""
        if happens(drawn):
            axes = fn.cast(drawn, dtype=types.DALIDataType.INT32)
            image = fn.flip(image, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
            label = fn.flip(label, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
            if self.pairs:
                label = self._exchanged(label, drawn)
        return image, label

    def _exchanged(self, label: Any, drawn: Any) -> Any:
        moved = label
        if drawn[1 + self.swap_axis] > 0:
            for first, second in self._pairs():
                is_first: Any = fn.cast(label == first, dtype=types.DALIDataType.INT16)
                is_second: Any = fn.cast(label == second, dtype=types.DALIDataType.INT16)
                moved = moved + (is_first - is_second) * types.Constant(
                    second - first, dtype=types.DALIDataType.INT16
                )
        return moved

    def _pairs(self) -> list[tuple[int, int]]:
        return [(self.pairs[place], self.pairs[place + 1]) for place in range(0, len(self.pairs), 2)]

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        flips = drawn[1:] > 0
        for volume in (*image, *label):
            flip(volume, flips)
        if self.pairs and flips[self.swap_axis]:
            partner = np.array(partners(tuple(self._pairs()), max(self.pairs) + 1), label.dtype)
            for volume in label:
                exchange(volume, partner)
        return image, label
