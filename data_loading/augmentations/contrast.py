"""Contrast around the mean, drawn for each channel, within the channel's range (nnU-Net v2, step 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn, math

from data_loading.augmentations.base import Augmentation, DrawContext, beside, happens
from data_loading.augmentations.factors import FactorRange
from data_loading.kernels.intensity import extremes, scale_within_range

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

VOXEL_AXES = [1, 2, 3]
ALL_AXES = [0, 1, 2, 3]


@final
@dataclass(frozen=True)
class Contrast(Augmentation):
    """With `probability`, multiplies the distance of a channel's voxels to their mean.

    The factor is half the time in low..1, half in 1..high, and the result is clamped to the channel's minimum
    and maximum. With `same` all channels have one factor, uniform in low..high, and one minimum and maximum:
    those of the patch. `around_mean=false` multiplies the values themselves, as NVIDIA's nnU-Net does.
    """

    name: ClassVar[str] = "contrast"
    has_twin: ClassVar[bool] = True
    probability: float = 0.15
    low: float = 0.75
    high: float = 1.25
    same: bool = False
    around_mean: bool = True

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
        """The image with other contrast; the label is left alone."""
        if happens(drawn):
            factor = beside(image, fn.reshape(drawn[1:], shape=[-1, 1, 1, 1]))
            axes = ALL_AXES if self.same else VOXEL_AXES
            low = fn.reductions.min(image, axes=axes, keep_dims=True)
            high = fn.reductions.max(image, axes=axes, keep_dims=True)
            if self.around_mean:
                mean = fn.reductions.mean(image, axes=VOXEL_AXES, keep_dims=True)
                scaled = (image - mean) * factor + mean
            else:
                scaled = image * factor
            image = math.clamp(scaled, low, high)
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        whole = extremes(image.reshape(-1)) if self.same else None
        for channel, factor in zip(image, drawn[1:], strict=True):
            values = channel.reshape(-1)
            scale_within_range(values, factor, self.around_mean, whole or extremes(values))
        return image, label
