"""Zooming into the middle of a patch (NVIDIA's nnU-Net)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from nvidia.dali import fn
from nvidia.dali.types import DALIDataType, DALIInterpType

from data_loading.augmentations.base import Augmentation, DrawContext, check_low_high, check_shape, happens
from data_loading.kernels.resample import cubic_taps, nearest_places, pick, resample

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

PATCH = slice(1, 4)  # places in the drawn vector
PART = slice(4, 7)
LATER = 0.25  # of a part of a voxel


@final
@dataclass(frozen=True)
class Zoom(Augmentation):
    """With `probability`, the middle of the patch fills the patch.

    The middle is a share of each edge, uniform in low..high and the same for all; a single slice keeps its
    first axis. Image cubic (Catmull-Rom), label nearest; voxel centres aligned, the
    edges of the middle repeated.
    """

    name: ClassVar[str] = "zoom"
    has_twin: ClassVar[bool] = True
    probability: float = 0.15
    low: float = 0.7
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_low_high(self.name, self.low, self.high, largest=1.0)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, patch (d, h, w), shape (d, h, w) of the part that fills it)."""
        is_wanted = random.random() < self.probability
        share = random.uniform(self.low, self.high)
        part = np.maximum(np.rint(share * np.array(context.patch)), 1)
        if context.is_slice:
            part[0] = 1
        return np.array([is_wanted and (part != context.patch).any(), *context.patch, *part], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """Image and label maps, zoomed alike."""
        if happens(drawn):
            patch = label.shape()[1:]
            part = fn.cast(drawn[4:7], dtype=DALIDataType.INT64)
            start = (patch - part) // 2
            size = _float(patch)
            image = _zoom_image(image, start, part, size)
            label = _zoom_label(label, start, part, size)
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`."""
        check_shape(self.name, image, drawn[PATCH])
        patch, part = np.array(label.shape[1:]), drawn[PART].astype(int)
        low = (patch - part) // 2
        middle = (slice(None), *(slice(start, start + size) for start, size in zip(low, part, strict=True)))
        taps = [cubic_taps(size, target) for size, target in zip(part, patch, strict=True)]
        places = [nearest_places(size, target) for size, target in zip(part, patch, strict=True)]
        zoomed, moved = np.empty_like(image), np.empty_like(label)
        for source, target in zip(image[middle], zoomed, strict=True):
            resample(source, target, *taps)
        for source, target in zip(label[middle], moved, strict=True):
            pick(source, target, *places)
        return zoomed, moved


def _zoom_image(image: DataNode, start: DataNode, part: DataNode, size: DataNode) -> Any:
    middle = fn.slice(image, start, part, axes=[1, 2, 3])
    return fn.resize(middle, size=size, interp_type=DALIInterpType.INTERP_CUBIC, antialias=False)


def _zoom_label(label: DataNode, start: DataNode, part: DataNode, size: DataNode) -> Any:
    # Of two voxels equally near, the later counts: a shift by less than the distance to the next tie.
    lower = _float(start) + LATER / size
    upper = lower + _float(part)
    return fn.resize(label, size=size, roi_start=lower, roi_end=upper, interp_type=DALIInterpType.INTERP_NN)


def _float(node: DataNode) -> Any:
    return fn.cast(node, dtype=DALIDataType.FLOAT)
