"""The contract of an augmentation: draw plain numbers first, apply them in the DALI graph later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from utils.contracts import Shape

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawContext:
    """What a draw may depend on."""

    patch: Shape
    num_channels: int


def happens(drawn: DataNode) -> Any:
    """Whether the first drawn value asks for a change; a graph node, decided sample by sample."""
    return drawn[0] > 0


def beside(image: DataNode, values: DataNode) -> DataNode:
    """`values` on the device of `image`: DALI's arithmetic takes no host tensor beside a device tensor."""
    return values.gpu() if image.device == "gpu" else values


@dataclass(frozen=True)
class Augmentation(ABC):
    """One random change of a patch.

    `draw` runs before a voxel is read and returns float32 values whose first is 0 where nothing happens;
    `apply` runs inside the graph, where an `if` on a drawn value skips the operator for that sample alone.
    Everything random is drawn: `apply` keeps no state, so any rank can resume at any step.
    A part that moves voxels overrides `source_shape`, so that the reader fetches what it needs and no more.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """The parameters of one sample, float32 (n,), n the same for every sample."""

    @abstractmethod
    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The changed image (C, D, H, W) and label (1, D, H, W) as graph nodes."""

    def source_shape(self, drawn: np.ndarray, patch: Shape) -> Shape:  # noqa: ARG002
        """The block around the patch that these parameters need to read."""
        return patch
