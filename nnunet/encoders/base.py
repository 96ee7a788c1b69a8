"""The contract of an encoder: an image in, one feature map per stage out, finest first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from nnunet.blocks import BlockStyle
from nnunet.gradient_fork import GradientFork
from utils.contracts import Stage


@dataclass(frozen=True)
class Encoder(ABC):
    """Options of one kind of encoder; `build` makes the module.

    The module maps (B, C, *spatial) to a tuple with one map per stage, channels as planned, finest first.
    """

    name: ClassVar[str]

    @abstractmethod
    def build(self, num_channels: int, stages: Sequence[Stage], style: BlockStyle) -> nn.Module:
        """The encoder for `stages`; every parameter exists when it returns."""

    def build_class_stream(self, stages: Sequence[Stage], style: BlockStyle) -> nn.Module | None:  # noqa: ARG002
        """A module between the encoder and a classification branch; None: the branch reads the encoder.

        `stages` are those that the branch needs. The module maps the encoder's maps to maps for the branch,
        all stages as planned; it is built only where there is a branch.
        """
        return None

    def fork(self) -> GradientFork | None:
        """How the class gradient enters the network; None: as the branch says."""
        return None


@final
class StageChain(nn.Module):
    """One module per stage, each fed by the one before."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, finest first."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return tuple(features)
