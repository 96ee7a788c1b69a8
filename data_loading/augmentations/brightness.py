"""Multiplicative brightness, drawn for each channel (nnU-Net v2, step 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn

from data_loading.augmentations.base import Augmentation, DrawContext, beside, happens
from data_loading.augmentations.factors import FactorRange

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Brightness(Augmentation):
    """With `probability`, multiplies each channel: half the time in low..1, half in 1..high.

    With `same`, all channels by one factor uniform in low..high.
    """

    name: ClassVar[str] = "brightness"
    has_twin: ClassVar[bool] = True
    probability: float = 0.15
    low: float = 0.75
    high: float = 1.25
    same: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._factors()

    def _factors(self) -> FactorRange:
        return FactorRange(self.name, self.low, self.high, self.same)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, factor of channel 0, factor of channel 1, ...)."""
        is_wanted = random.random() < self.probability
        return np.array([is_wanted, *self._factors().draw(random, context.num_channels)], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The scaled image; the label is left alone."""
        if happens(drawn):
            image = image * beside(image, fn.reshape(drawn[1:], shape=[-1, 1, 1, 1]))
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The twin of `apply`, in place."""
        image *= drawn[1:].reshape(-1, 1, 1, 1)
        return image, label
