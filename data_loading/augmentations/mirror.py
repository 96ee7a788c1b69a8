"""Mirroring along each spatial axis (nnU-Net v2, step 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn, types

from data_loading.augmentations.base import Augmentation, DrawContext, happens

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Mirror(Augmentation):
    """Flips each axis with `probability`; a patch one slice deep is never flipped along its depth."""

    name: ClassVar[str] = "mirror"
    probability: float = 0.5

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(any axis flips, depth, height, width)."""
        flips = random.random(3) < self.probability
        flips &= np.array(context.patch) > 1
        return np.array([flips.any(), *flips], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """Image and label, flipped alike."""
        if happens(drawn):
            axes = fn.cast(drawn, dtype=types.DALIDataType.INT32)
            image = fn.flip(image, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
            label = fn.flip(label, depthwise=axes[1], vertical=axes[2], horizontal=axes[3])
        return image, label
