"""Features on a common scale over the cases seen so far: running statistics, in training and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from nnunet.ranks import ranks_talk

MEMORY = 1000.0  # cases after which an old one fades
SMALLEST_DEVIATION = 1e-3  # of a feature that hardly differs between cases
LARGEST = 6.0  # standard deviations; the statistics of the first cases are poor


@final
class RunningStandardiser(nn.Module):
    """Features (B, F) minus their mean, over their standard deviation, both over the cases of training.

    What pooled features of different cases have in common is large, what tells the classes apart is small:
    without a common scale a head learns the former first. Unlike batch normalisation a case never depends on
    its batch, which is small here: the running statistics normalise in training too (as Ioffe 2017 corrects
    batch statistics towards them), and no gradient passes through them.
    """

    share: Tensor
    mean: Tensor
    variance: Tensor
    num_cases: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths` are the numbers of features of one origin each, in order.

        A feature counts the less the more there are of its origin, so that many channels of a deep stage do
        not drown a few of a fine one: all origins have the same sum of squares.
        """
        super().__init__()
        num_features = sum(widths)
        mean_width = num_features / len(widths)
        share = torch.cat([torch.full((width,), math.sqrt(mean_width / width)) for width in widths])
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("num_cases", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) of mean 0; in training the cases join the statistics first."""
        if self.training:
            self._remember(features.detach())
        deviation = self.variance.sqrt().clamp_min(SMALLEST_DEVIATION)
        return ((features - self.mean) / deviation).clamp(-LARGEST, LARGEST) * self.share

    @torch.no_grad()
    def _remember(self, features: Tensor) -> None:
        """Pool the moments of these cases with those of the cases before; all ranks remember the same."""
        values = (features - self.mean).double()  # near 0, so that squares keep their digits
        sums = torch.stack(
            [values.sum(dim=0), values.square().sum(dim=0), torch.ones_like(values).sum(dim=0)]
        )
        if ranks_talk():
            torch.distributed.all_reduce(sums)
        count = sums[2, 0].float()
        gap = (sums[0] / sums[2]).float()
        variance = (sums[1] / sums[2] - (sums[0] / sums[2]).square()).clamp_min(0).float()
        total = self.num_cases + count
        rate = count / total.clamp_max(MEMORY)
        self.variance.lerp_(variance, rate).add_(rate * (1 - rate) * gap.square())
        self.mean.add_(rate * gap)
        self.num_cases.copy_(total)
