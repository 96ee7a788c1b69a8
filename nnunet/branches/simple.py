"""A convolutional head on the last encoder stage: the usual multi-task baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, convolution
from nnunet.branches.base import Branch
from utils.contracts import Stage


@final
@dataclass(frozen=True)
class Simple(Branch):
    """Two convolutions on the bottleneck, global average pooling, two linear layers."""

    name: ClassVar[str] = "simple"
    hidden: int = 256
    dropout: float = 0.5

    def build(self, stages: Sequence[Stage], num_classes: int, style: BlockStyle) -> nn.Module:
        """The head for the last of `stages`."""
        kernel = stages[-1].kernel
        return SimpleHead(
            nn.Sequential(
                convolution(stages[-1].channels, self.hidden, kernel, (1, 1, 1), style),
                nn.LeakyReLU(style.negative_slope),
                convolution(self.hidden, self.hidden, kernel, (1, 1, 1), style),
                nn.LeakyReLU(style.negative_slope),
            ),
            nn.Sequential(
                nn.Linear(self.hidden, self.hidden),
                nn.LeakyReLU(style.negative_slope),
                nn.Dropout(self.dropout),
                nn.Linear(self.hidden, num_classes),
            ),
        )


@final
class SimpleHead(nn.Module):
    """Convolutions, pooling, linear layers."""

    def __init__(self, convolutions: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.linear = linear

    def forward(self, features: tuple[Tensor, ...], label_logits: Tensor) -> Tensor:  # noqa: ARG002
        """Class logits (B, K); the label logits are not used."""
        with torch.autocast(features[-1].device.type, enabled=False):
            maps = self.convolutions(features[-1].float())
            return self.linear(maps.flatten(2).mean(dim=2))
