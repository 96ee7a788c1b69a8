"""Gaussian blur of single channels (nnU-Net v2, step 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn
from nvidia.dali import math as graph_math
from nvidia.dali.types import DALIDataType

from data_loading.augmentations.base import Augmentation, DrawContext, check_low_high, happens
from data_loading.kernels.blur import blur, half_kernel

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

REACH = 4  # standard deviations that the kernel covers on each side
LEAST_SIGMA = 0.01  # voxels


@final
@dataclass(frozen=True)
class Blur(Augmentation):
    """With `probability`, blurs each channel with `channel_probability`.

    Sigma, uniform in low..high voxels, is drawn for each channel and axis, or with `same=true` once for all.
    A patch one slice deep is blurred in plane. Borders are reflected without repeating the edge voxel.
    """

    name: ClassVar[str] = "blur"
    has_twin: ClassVar[bool] = True
    probability: float = 0.2
    channel_probability: float = 0.5
    low: float = 0.5
    high: float = 1.0
    same: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_low_high(self.name, self.low, self.high)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, then for each channel sigma along (d, h, w), 0 where an axis is not blurred)."""
        is_wanted = random.random() < self.probability
        channels = random.random((context.num_channels, 1)) < self.channel_probability
        sigmas = self.low + (self.high - self.low) * random.random((context.num_channels, 3))
        if self.same:
            sigmas[:] = sigmas[0, 0]
        sigmas *= channels & (np.array(context.patch) > 1)
        return np.array([is_wanted and sigmas.any(), *sigmas.ravel()], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The blurred image; the label is left alone."""
        if happens(drawn):
            # A window of one voxel leaves an axis as it is, whatever its sigma, which must not be 0.
            sigmas = fn.reshape(drawn[1:], shape=[-1, 3])
            windows = 2 * fn.cast(graph_math.ceil(REACH * sigmas), dtype=DALIDataType.INT32) + 1
            # DALI takes one sigma for all channels, but one for each frame of a video.
            image = fn.gaussian_blur(
                fn.reshape(image, layout="FDHW"),
                sigma=fn.per_frame(graph_math.max(sigmas, LEAST_SIGMA)),
                window_size=fn.per_frame(windows),
            )
            image = fn.reshape(image, layout="CDHW")
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        for channel, sigmas in zip(image, drawn[1:].reshape(-1, 3), strict=True):
            if sigmas.any():
                blur(channel, *(half_kernel(sigma, int(np.ceil(REACH * sigma))) for sigma in sigmas))
        return image, label
