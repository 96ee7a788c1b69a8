"""Additive Gaussian noise, one strength for all channels (nnU-Net v2, step 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn

from data_loading.augmentations.base import Augmentation, DrawContext

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class Noise(Augmentation):
    """With `probability`, adds noise of a standard deviation uniform in 0..`max_std` (z-scored units)."""

    name: ClassVar[str] = "noise"
    probability: float = 0.1
    max_std: float = 0.1

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:  # noqa: ARG002
        """(happens, standard deviation)."""
        happens = random.random() < self.probability
        return np.array([happens, random.uniform(0.0, self.max_std)], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The noisy image; the label is left alone."""
        if drawn[0] > 0:
            image = fn.noise.gaussian(image, stddev=drawn[1])
        return image, label
