"""Features -> label logits at every supervised resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, plain_stage, pointwise, upsampling
from nnunet.gradient_fork import GradientFork
from utils.contracts import Stage

KernelSource = Literal["skip", "below"]


@final
class Decoder(nn.Module):
    """The ascending arm: transposed convolution, concatenation with the skip, `num_blocks` convolutions.

    `num_outputs` segmentation heads sit on the finest stages. In evaluation only the finest is computed.
    The convolutions have the kernel of the stage whose skip they join (nnU-Net), or, with `kernels_from`
    "below", of the stage they come from (MONAI's DynUNet, hence NVIDIA); equal where no kernel is flat.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_labels: int,
        num_outputs: int,
        style: BlockStyle,
        *,
        num_blocks: int = 2,
        kernels_from: KernelSource = "skip",
    ) -> None:
        super().__init__()
        offset = {"skip": 0, "below": 1}[kernels_from]
        ascending = range(len(stages) - 2, -1, -1)
        self.upsamplings = nn.ModuleList(
            upsampling(stages[level + 1].channels, stages[level].channels, stages[level + 1].stride, style)
            for level in ascending
        )
        self.stages = nn.ModuleList(
            plain_stage(
                2 * stages[level].channels,
                replace(
                    stages[level],
                    kernel=stages[level + offset].kernel,
                    stride=(1, 1, 1),
                    num_blocks=num_blocks,
                ),
                style,
            )
            for level in ascending
        )
        self.heads = nn.ModuleList(
            pointwise(stages[level].channels, num_labels, style) for level in range(num_outputs)
        )

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Label logits, finest first."""
        return self.decode(features, keep_maps=False)[0]

    def decode(
        self, features: tuple[Tensor, ...], *, keep_maps: bool, fork: GradientFork | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Label logits, and, where they are to be kept, the maps of all its stages; both finest first.

        The `fork` stands between each map and whoever reads the kept one.
        """
        maps = features[-1]
        supervised: list[Tensor] = []
        kept: list[Tensor] = []
        wanted = len(self.heads) if self.training else 1
        for step, (upsample, stage) in enumerate(zip(self.upsamplings, self.stages, strict=True)):
            level = len(features) - 2 - step
            maps = stage(torch.cat([upsample(maps), features[level]], dim=1))
            if keep_maps:
                (maps,), (read,) = ((maps,), (maps,)) if fork is None else fork((maps,))
                kept.append(read)
            if level < wanted:
                supervised.append(self.heads[level](maps))
        return tuple(reversed(supervised)), tuple(reversed(kept))
