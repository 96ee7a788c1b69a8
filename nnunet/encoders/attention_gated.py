"""A second stream for the class, gated at every depth by the segmentation's attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, conv_norm_act, pointwise
from nnunet.encoders.base import Encoder
from nnunet.encoders.plain import Plain
from nnunet.encoders.residual import Residual
from nnunet.gradient_fork import GradientFork, gradient_fork
from utils.contracts import Shape, Stage
from utils.errors import UserError

BODIES: dict[str, type[Encoder]] = {"plain": Plain, "residual": Residual}
UNIT: Shape = (1, 1, 1)


@final
@dataclass(frozen=True)
class AttentionGated(Encoder):
    """The encoder `body` as it is, and for the branch a lighter one that starts from its first maps.

    With `detach` the class loss stops before the encoder. `balance` above 0 gives the class gradient that
    enters the encoder, or a map of the decoder, that share of the segmentation's norm, whatever the weight of
    the class loss; what reaches the encoder through the decoder counts as the segmentation's. 0: the branch's
    limit holds.
    """

    name: ClassVar[str] = "attention_gated"
    body: str = "plain"
    detach: bool = False
    balance: float = 0.0

    def build(self, num_channels: int, stages: Sequence[Stage], style: BlockStyle) -> nn.Module:
        """The body for `stages`; UserError if there is none of this name."""
        if self.body not in BODIES:
            raise UserError(f"{self.name}: body should be one of {', '.join(BODIES)}, got {self.body!r}.")
        return BODIES[self.body]().build(num_channels, stages, style)

    def build_class_stream(self, stages: Sequence[Stage], style: BlockStyle) -> nn.Module:
        """One convolution and one gate per stage; UserError where the branch needs none of the encoder."""
        if not stages:
            raise UserError(
                f"{self.name} changes what the branch sees of the encoder, but this branch reads the decoder "
                "alone. Choose another branch, or arms=both."
            )
        return GatedStream(stages, style, detach=self.detach)

    def fork(self) -> GradientFork | None:
        """That of `balance`, in place of the branch's limit. UserError for a negative one."""
        return gradient_fork(self.name, "balance", self.balance)


@final
class GatedStream(nn.Module):
    """Maps of the class beside those of the segmentation, which are read and never changed.

    It goes as deep as the branch needs; below, the branch is handed the maps of the segmentation.
    The planned strides lead from depth to depth, so both streams meet at equal sizes without resampling.
    """

    def __init__(self, stages: Sequence[Stage], style: BlockStyle, *, detach: bool) -> None:
        super().__init__()
        inputs = [stages[0].channels, *[stage.channels for stage in stages[:-1]]]
        strides = [UNIT, *[stage.stride for stage in stages[1:]]]
        self.steps = nn.ModuleList(
            conv_norm_act(channels, stage.channels, stage.kernel, stride, style)
            for channels, stage, stride in zip(inputs, stages, strides, strict=True)
        )
        self.gates = nn.ModuleList(Gate(stage.channels, style) for stage in stages)
        self.detach = detach

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The maps of the class, finest first."""
        read = tuple(maps.detach() for maps in features) if self.detach else features
        maps, gated = read[0], []
        for step, gate, beside in zip(self.steps, self.gates, read, strict=False):
            maps = gate(step(maps), beside)
            gated.append(maps)
        return (*gated, *read[len(gated) :])


@final
class Gate(nn.Module):
    """Additive attention over places (Oktay et al. 2018): one weight per voxel, from both streams."""

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.activation = nn.LeakyReLU(style.negative_slope)
        self.weigh = pointwise(channels, 1, style)

    def forward(self, maps: Tensor, beside: Tensor) -> Tensor:
        """`maps` (B, C, *spatial), weighted by what they and the maps `beside` them say together."""
        return maps * torch.sigmoid(self.weigh(self.activation(maps + beside)))
