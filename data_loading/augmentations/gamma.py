"""Gamma correction, drawn for each channel, mean and standard deviation kept (nnU-Net v2, step 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn, math

from data_loading.augmentations.base import Augmentation, DrawContext, beside, happens
from data_loading.augmentations.factors import FactorRange
from data_loading.kernels.intensity import SMALLEST_SPAN, change_gamma

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

VOXEL_AXES = [1, 2, 3]


@final
@dataclass(frozen=True)
class Gamma(Augmentation):
    """With `probability`, raises each channel, scaled to 0..1, to a power: half in low..1, half in 1..high.

    The channel's mean and standard deviation are then restored.
    """

    name: ClassVar[str] = "gamma"
    has_twin: ClassVar[bool] = True
    probability: float = 0.3
    low: float = 0.7
    high: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._exponents()

    def _exponents(self) -> FactorRange:
        return FactorRange(self.name, self.low, self.high)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, exponent of channel 0, exponent of channel 1, ...)."""
        is_wanted = random.random() < self.probability
        return np.array([is_wanted, *self._exponents().draw(random, context.num_channels)], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The corrected image; the label is left alone."""
        if happens(drawn):
            image = corrected(image, drawn)
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        for channel, exponent in zip(image, drawn[1:], strict=True):
            change_gamma(channel.reshape(-1), exponent, False)  # noqa: FBT003 - Numba takes no keyword as fast
        return image, label


def corrected(image: DataNode, drawn: DataNode) -> DataNode:
    """(C, D, H, W) after gamma correction with the drawn exponents, as a graph node."""
    exponent = beside(image, fn.reshape(drawn[1:], shape=[-1, 1, 1, 1]))
    low = fn.reductions.min(image, axes=VOXEL_AXES, keep_dims=True)
    span = math.max(fn.reductions.max(image, axes=VOXEL_AXES, keep_dims=True) - low, SMALLEST_SPAN)
    # The offset is left out: restoring the mean undoes it. The span decides what counts as constant.
    raised = math.pow((image - low) / span, exponent) * span
    mean, std = _mean_and_std(image)
    raised_mean, raised_std = _mean_and_std(raised)
    return (raised - raised_mean) * (std / math.max(raised_std, SMALLEST_SPAN)) + mean


def _mean_and_std(image: DataNode) -> tuple[DataNode, DataNode]:
    """Mean and unbiased standard deviation of each channel (C, 1, 1, 1)."""
    mean = fn.reductions.mean(image, axes=VOXEL_AXES, keep_dims=True)
    return mean, fn.reductions.std_dev(image, mean, axes=VOXEL_AXES, keep_dims=True, ddof=1)
