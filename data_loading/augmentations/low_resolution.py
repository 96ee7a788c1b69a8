"""Simulated low resolution of single channels (nnU-Net v2, step 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from nvidia.dali import fn
from nvidia.dali import math as graph_math
from nvidia.dali.types import Constant, DALIInterpType

from data_loading.augmentations.base import Augmentation, DrawContext, check_low_high, check_shape, happens
from data_loading.kernels.resample import coarse_taps, resample

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

PATCH = slice(1, 4)  # places in the drawn vector
COARSE = slice(4, None)
LATER = 0.25  # of a part of a voxel
SCALES = np.eye(3, 4, dtype=np.float32)[np.newaxis]  # where a matrix holds the scales, and the shifts
SHIFTS = np.eye(4, dtype=np.float32)[3].reshape(1, 1, 4)


@final
@dataclass(frozen=True)
class LowResolution(Augmentation):
    """With `probability`, shrinks each channel with `channel_probability`, and enlarges it again.

    The factor is uniform in low..high and the same on all axes; slabs of thick slices and single slices keep
    their first axis. Down: nearest; up: linear; voxel centres aligned, edges repeated.
    """

    name: ClassVar[str] = "low_resolution"
    has_twin: ClassVar[bool] = True
    probability: float = 0.25
    channel_probability: float = 0.5
    low: float = 0.5
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_low_high(self.name, self.low, self.high, largest=1.0)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, patch (w, h, d), then for each channel its coarse shape (w, h, d), or the patch's)."""
        is_wanted = random.random() < self.probability
        channels = random.random((context.num_channels, 1)) < self.channel_probability
        factors = self.low + (self.high - self.low) * random.random((context.num_channels, 1))
        patch = np.array(context.patch[::-1])
        coarse = np.maximum(np.rint(patch * np.where(channels, factors, 1.0)), 1)
        if context.turns_in_plane:
            coarse[:, 2] = context.patch[0]
        return np.array([is_wanted and (coarse != patch).any(), *patch, *coarse.ravel()], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The image with coarse channels; the label is left alone."""
        if happens(drawn):
            patch = fn.reshape(drawn[PATCH], shape=[1, 3])
            coarse = fn.reshape(drawn[COARSE], shape=[-1, 3])
            frames = fn.expand_dims(fn.reshape(image, layout="FDHW"), axes=[4], new_axis_names="C")
            image = _join(_coarsened(frames, patch, coarse))
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        check_shape(self.name, image, drawn[PATCH][::-1])
        patch = drawn[PATCH].astype(int)
        for channel, coarse in zip(image, drawn[COARSE].reshape(-1, 3).astype(int), strict=True):
            if (coarse != patch).any():
                width, height, depth = map(coarse_taps, patch, coarse)
                resample(channel, channel, depth, height, width)
        return image, label


def _coarsened(frames: Any, patch: DataNode, coarse: DataNode) -> Any:
    """Frames (F, D, H, W, 1), each down to its own shape and back; `patch` (1, 3), `coarse` (F, 3).

    The channels are frames of a video, for which DALI takes a matrix each, while its resizing takes one shape
    for all of them. A coarse frame therefore fills only a part of an array of the patch's shape, and the rest
    must repeat its edge: the last voxel that it takes is first moved to the end of the axis, behind which
    DALI repeats it.
    """
    last = graph_math.floor((2 * coarse - 1) * patch / (2 * coarse))
    behind = patch - 1 - last
    # Of two voxels equally near, the later counts: a shift by less than the distance to the next tie.
    later = LATER / coarse
    frames = _stretch(frames, 0 * coarse + 1, 0 - behind, DALIInterpType.INTERP_NN)
    frames = _stretch(frames, patch / coarse, behind + later, DALIInterpType.INTERP_NN)
    return _stretch(frames, coarse / patch, 0 * coarse, DALIInterpType.INTERP_LINEAR)


def _stretch(frames: DataNode, scales: DataNode, shifts: DataNode, interpolation: Any) -> Any:
    """Frames (F, D, H, W, 1): each reads at `scales` * place + `shifts`, (F, 3) in the order w, h, d.

    Places count from the edge of the first voxel. Beyond the borders the edge voxel is repeated.
    """
    matrix = fn.reshape(scales, shape=[-1, 3, 1]) * Constant(SCALES, device="cpu")
    matrix = matrix + fn.reshape(shifts, shape=[-1, 3, 1]) * Constant(SHIFTS, device="cpu")
    return fn.warp_affine(frames, matrix=fn.per_frame(matrix), interp_type=interpolation)


def _join(frames: Any) -> Any:
    return fn.reshape(fn.squeeze(frames, axes=[4]), layout="CDHW")
