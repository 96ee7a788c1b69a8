"""Mirroring along each spatial axis (nnU-Net v2, step 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn, types

from data_loading.augmentations.base import Augmentation, DrawContext, happens
from data_loading.kernels.mirror import flip
from utils.errors import UserError

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Mirror(Augmentation):
    """Flips each of `axes` with `probability`: 0 depth, 1 height, 2 width; never the depth of one slice."""

    name: ClassVar[str] = "mirror"
    has_twin: ClassVar[bool] = True
    probability: float = 0.5
    axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.axes) <= {0, 1, 2}:
            raise UserError(f"mirror: axes should be some of 0 (depth), 1 and 2, got {self.axes}.")

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(any axis flips, depth, height, width)."""
        flips = random.random(3) < self.probability
        flips &= np.array(context.patch) > 1
        flips &= [axis in self.axes for axis in range(3)]
        return np.array([flips.any(), *flips], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """Image and label, flipped alike."""
        if happens(drawn):
            axes = fn.cast(drawn, dtype=types.DALIDataType.INT32)
            image = fn.flip(image, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
            label = fn.flip(label, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        flips = drawn[1:] > 0
        for volume in (*image, *label):
            flip(volume, flips)
        return image, label
