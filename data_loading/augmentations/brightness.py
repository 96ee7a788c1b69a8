"""Multiplicative brightness, drawn for each channel (nnU-Net v2, step 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn

from data_loading.augmentations.base import Augmentation, DrawContext, beside, happens

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Brightness(Augmentation):
    """With `probability`, multiplies each channel: half the time in low..1, half in 1..high."""

    name: ClassVar[str] = "brightness"
    probability: float = 0.15
    low: float = 0.75
    high: float = 1.25

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, factor of channel 0, factor of channel 1, ...)."""
        is_wanted = random.random() < self.probability
        below = random.random(context.num_channels) < 0.5
        factors = np.where(
            below,
            random.uniform(self.low, 1.0, context.num_channels),
            random.uniform(1.0, self.high, context.num_channels),
        )
        return np.array([is_wanted, *factors], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The scaled image; the label is left alone."""
        if happens(drawn):
            image = image * beside(image, fn.reshape(drawn[1:], shape=[-1, 1, 1, 1]))
        return image, label
