"""The plain encoder: two convolutions per stage, strided at its start (Isensee et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from nnunet.blocks import BlockStyle, plain_stage
from nnunet.encoders.base import Encoder, StageChain
from utils.contracts import Stage


@final
@dataclass(frozen=True)
class Plain(Encoder):
    """Stacked convolutions without skips inside a stage."""

    name: ClassVar[str] = "plain"

    def build(self, num_channels: int, stages: Sequence[Stage], style: BlockStyle) -> nn.Module:
        """The encoder for `stages`."""
        inputs = [num_channels, *[stage.channels for stage in stages[:-1]]]
        return StageChain(
            [plain_stage(channels, stage, style) for channels, stage in zip(inputs, stages, strict=True)]
        )
