"""Gamma correction of the inverted image (nnU-Net v2, step 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from data_loading.augmentations.base import Augmentation, DrawContext, check_low_high, happens
from data_loading.augmentations.gamma import Gamma, corrected
from data_loading.kernels.intensity import change_gamma

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class InvertedGamma(Augmentation):
    """With `probability`, `Gamma` on the negative of the image, which then becomes positive again.

    Where gamma below 1 lifts the dark voxels, this lowers the bright ones.
    """

    name: ClassVar[str] = "inverted_gamma"
    has_twin: ClassVar[bool] = True
    probability: float = 0.1
    low: float = 0.7
    high: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_low_high(self.name, self.low, self.high)

    def _gamma(self) -> Gamma:
        return Gamma(probability=self.probability, low=self.low, high=self.high)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, exponent of channel 0, exponent of channel 1, ...)."""
        return self._gamma().draw(random, context)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The corrected image; the label is left alone."""
        if happens(drawn):
            image = -corrected(-image, drawn)
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        for channel, exponent in zip(image, drawn[1:], strict=True):
            change_gamma(channel.reshape(-1), exponent, True)  # noqa: FBT003
        return image, label
