"""The contract of an augmentation: draw plain numbers first, apply them later, in graph or on host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from utils.contracts import Plan, Shape
from utils.errors import UserError

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


def check_low_high(owner: str, low: float, high: float, largest: float = inf) -> None:
    """UserError in the name of `owner` where low..high is no range of numbers above 0, up to `largest`."""
    if not (0 < low <= high <= largest and high < inf):
        limit = f" and at most {largest:g}" if largest < inf else ""
        raise UserError(
            f"{owner}: low and high should be numbers above 0{limit}, low first, got low={low}, high={high}."
        )


def check_shape(owner: str, image: np.ndarray, drawn_patch: np.ndarray) -> None:
    """ValueError in the name of `owner` where (C, D, H, W) is not the patch (3,) that its values belong to.

    A compiled loop would read beside the image.
    """
    patch = tuple(drawn_patch.astype(int).tolist())
    if image.shape[1:] != patch:
        raise ValueError(
            f"{owner}: its values were drawn for a patch of {patch}, but the image has {image.shape[1:]}. "
            "A part that cuts the image to the patch has to come before it."
        )


@dataclass(frozen=True)
class Augmentation(ABC):
    """One random change of a patch.

    `draw` runs before a voxel is read and returns float32 values whose first is 0 where nothing happens.
    `apply` acts inside the DALI graph, where an `if` on a drawn value skips the operator for that sample
    alone; `compute` is its twin for host arrays, a compiled loop. The two agree to rounding, except where
    noise is generated. Everything random is drawn: neither keeps a state, so any rank can resume at any step.
    A part that moves voxels overrides `source_shape`, so that the reader fetches what it needs and no more.
    Options outside their range raise UserError; a part with ranges of its own extends `__post_init__`.
    """

    name: ClassVar[str]
    has_twin: ClassVar[bool] = False  # whether `compute` exists
    reads: ClassVar[bool] = False  # whether `read` exists

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("probability"):
                self._check_range(field.name, 0.0, 1.0)

    def _check_range(self, option: str, low: float, high: float) -> None:
        """UserError where an option is not in low..high, or not finite."""
        value = getattr(self, option)
        if not (low <= value <= high and value < inf):
            span = f"in {low:g}..{high:g}" if high < inf else f"a number from {low:g}"
            raise UserError(f"{self.name}: {option} should be {span}, got {value}.")

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

        Called only where `drawn[0]` is not 0; for a part that reads also where the block is larger than the
        patch. Both arrays are contiguous and the caller's own: they may be changed in place and returned.
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
