"""Zero outside the non-zero mask, after all else has changed the voxels there (nnU-Net v2, step 11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from nvidia.dali import fn
from nvidia.dali.types import Constant, DALIDataType

from data_loading.augmentations.base import Augmentation, DrawContext, beside, happens
from utils.contracts import OUTSIDE_LABEL, Plan
from utils.errors import UserError

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@final
@dataclass(frozen=True)
class ZeroOutside(Augmentation):
    """Sets `channels` to 0 where the first label map is -1: outside the non-zero mask of the case.

    Done to every patch. Without `channels` a plan chooses those whose normaliser used the mask, maybe none.
    """

    name: ClassVar[str] = "zero_outside"
    has_twin: ClassVar[bool] = True
    channels: tuple[int, ...] = ()  # () stands for those of the plan

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(channel < 0 for channel in self.channels):
            raise UserError(f"zero_outside: channels should be some of 0, 1, ..., got {self.channels}.")

    def for_plan(self, plan: Plan) -> ZeroOutside:
        """With the channels that were normalised inside the mask, unless others are named; UserError if the
        plan lacks one of those.
        """
        if not self.channels:
            return replace(self, channels=tuple(np.flatnonzero(plan.uses_mask).tolist()))
        if max(self.channels) >= len(plan.uses_mask):
            raise UserError(
                f"zero_outside: channels should be below {len(plan.uses_mask)}, the number of the plan's "
                f"channels, got {self.channels}."
            )
        return self

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:  # noqa: ARG002
        """(whether there are channels to clear,)."""
        return np.array([len(self.channels) > 0], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The cleared image; the label is left alone."""
        if happens(drawn):
            cleared = beside(image, self._chosen(image))
            image = image * (1 - cleared * (label[0:1] == OUTSIDE_LABEL))
        return image, label

    def _chosen(self, image: DataNode) -> Any:
        """1 for each channel to clear, 0 for the others, (C, 1, 1, 1)."""
        flags = np.isin(np.arange(max(self.channels, default=0) + 1), self.channels).astype(np.float32)
        first: Any = Constant(flags, device="cpu")
        num_channels = fn.cast(image.shape()[0:1], dtype=DALIDataType.INT32)
        padded = fn.pad(first, axes=[0], shape=num_channels, fill_value=0)
        return fn.reshape(padded, shape=[-1, 1, 1, 1])

    def compute(
        self,
        image: np.ndarray,
        label: np.ndarray,
        drawn: np.ndarray,  # noqa: ARG002
    ) -> tuple[np.ndarray, np.ndarray]:
        """The twin of `apply`, in place."""
        is_inside = label[0] != OUTSIDE_LABEL
        for channel in self.channels:
            image[channel] *= is_inside
        return image, label
