"""The residual encoder of nnU-Net's ResEnc presets (Isensee et al. 2024; He et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from nnunet.blocks import (
    BlockStyle,
    average_pooling,
    conv_norm_act,
    convolution,
    normalisation,
    pointwise,
)
from nnunet.encoders.base import Encoder, StageChain
from utils.contracts import Shape, Stage

UNIT = (1, 1, 1)


@final
@dataclass(frozen=True)
class Residual(Encoder):
    """A stem of one convolution, then `stage.num_blocks` residual blocks of two convolutions per stage.

    The default planner has 2 of them in every stage, so twice the convolutions of the plain encoder; those of
    the ResEnc presets plan 1, 3, 4, 6, 6, 6, and such a plan asks for this encoder by itself.
    """

    name: ClassVar[str] = "residual"

    def build(self, num_channels: int, stages: Sequence[Stage], style: BlockStyle) -> nn.Module:
        """The encoder for `stages`; the stem has the channels and the kernel of the first."""
        first = stages[0]
        stem = conv_norm_act(num_channels, first.channels, first.kernel, UNIT, style)
        inputs = [first.channels, *[stage.channels for stage in stages[:-1]]]
        modules = [
            _residual_stage(channels, stage, style) for channels, stage in zip(inputs, stages, strict=True)
        ]
        return StageChain([nn.Sequential(stem, modules[0]), *modules[1:]])


@final
class ResidualBlock(nn.Module):
    """Two convolutions beside a skip; the stride is that of the first, and of the skip's average pooling.

    The last normalisation starts at zero, so that a block begins as its skip (Goyal et al. 2017).
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Shape, stride: Shape, style: BlockStyle
    ) -> None:
        super().__init__()
        self.first = conv_norm_act(channels_in, channels_out, kernel, stride, style)
        last_norm: Any = normalisation(channels_out, style)
        nn.init.zeros_(last_norm.weight)
        self.second = nn.Sequential(convolution(channels_out, channels_out, kernel, UNIT, style), last_norm)
        self.skip = nn.Sequential()
        if stride != UNIT:
            self.skip.append(average_pooling(stride, style))
        if channels_in != channels_out:
            self.skip.append(pointwise(channels_in, channels_out, style, bias=False))
            self.skip.append(normalisation(channels_out, style))
        self.activation = nn.LeakyReLU(style.negative_slope, inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, *spatial) -> (B, C_out, *spatial / stride)."""
        return self.activation(self.second(self.first(maps)) + self.skip(maps))


def _residual_stage(channels_in: int, stage: Stage, style: BlockStyle) -> nn.Module:
    blocks = [ResidualBlock(channels_in, stage.channels, stage.kernel, stage.stride, style)]
    for _ in range(stage.num_blocks - 1):
        blocks.append(ResidualBlock(stage.channels, stage.channels, stage.kernel, UNIT, style))
    return nn.Sequential(*blocks)
