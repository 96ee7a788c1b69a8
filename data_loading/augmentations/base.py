"""The contract of an augmentation: draw plain numbers first, apply them later, in graph or on host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from utils.contracts import Plan, Shape

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

    from data_loading.readers import StoredCase

FLAT_RATIO = 3  # nnU-Net v2 turns a patch in plane only where its longest edge is over 3 times the first


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawContext:
    """What a draw may depend on."""

    patch: Shape
    num_channels: int
    place: int = 0  # of a slice within a run of neighbours that share their draws

    @property
    def is_slice(self) -> bool:
        """A 2-D patch."""
        return self.patch[0] == 1

    @property
    def turns_in_plane(self) -> bool:
        """Whether geometry leaves the first axis alone: 2-D patches, and slabs of thick slices."""
        return self.is_slice or max(self.patch) / self.patch[0] > FLAT_RATIO


def happens(drawn: DataNode) -> Any:
    """Whether the first drawn value asks for a change; a graph node, decided sample by sample."""
    return drawn[0] > 0


def beside(image: DataNode, values: DataNode) -> DataNode:
    """`values` on the device of `image`: DALI's arithmetic takes no host tensor beside a device tensor."""
    return values.gpu() if image.device == "gpu" else values


@dataclass(frozen=True)
class Augmentation(ABC):
    """One random change of a patch.

    `draw` runs before a voxel is read and returns float32 values whose first is 0 where nothing happens.
    `apply` acts inside the DALI graph, where an `if` on a drawn value skips the operator for that sample
    alone; `compute` is its twin for host arrays, a compiled loop. The two agree to rounding, except where
    noise is generated. Everything random is drawn: neither keeps a state, so any rank can resume at any step.
    A part that moves voxels overrides `source_shape`, so that the reader fetches what it needs and no more.
    """

    name: ClassVar[str]
    has_twin: ClassVar[bool] = False  # whether `compute` exists
    reads: ClassVar[bool] = False  # whether `read` exists

    def for_plan(self, plan: Plan) -> Augmentation:  # noqa: ARG002
        """The part as this plan needs it; most need nothing."""
        return self

    @abstractmethod
    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """The parameters of one sample, float32 (n,), n the same for every sample.

        The random numbers consumed must not depend on their values, so that one part's choice never moves
        another's.
        """

    @abstractmethod
    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The changed image (C, D, H, W) and label maps (L, D, H, W) as graph nodes."""

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same change of host arrays: image (C, D, H, W) float32, label maps (L, D, H, W) int16.

        Called only where `drawn[0]` is not 0, or the block is larger than the patch. Both arrays are
        contiguous and the caller's own: they may be changed in place and returned.
        """
        raise NotImplementedError(f"{self.name} has no twin on the host.")

    def read(self, case: StoredCase, start: Shape, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The changed patch straight from the stored volumes: what `compute` makes of a block around `start`.

        For a part that resamples; called where it is the first of a recipe and `drawn[0]` is not 0.
        """
        raise NotImplementedError(f"{self.name} does not read.")

    def source_shape(self, drawn: np.ndarray, patch: Shape) -> Shape:  # noqa: ARG002
        """The block around the patch that these parameters need to read.

        Each edge is the patch's plus an even number, so that block and patch share their centre.
        """
        return patch
