"""Features of the shallow stages, pooled inside the predicted lesion: mean, deviation and maximum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle
from nnunet.branches.base import Branch, BranchModule, check_at_least, check_share, present
from nnunet.branches.pooling import MAX_POOLS, MEAN_POOLS
from nnunet.branches.regions import RegionRule
from nnunet.lesion import Anatomy
from utils.contracts import Stage

SMALLEST_VARIANCE = 1e-6  # keeps the gradient of the square root finite
SMALLEST_SHARE = 1e-12  # of a region in all cells together: keeps a division defined


@final
@dataclass(frozen=True)
class RoiPooled(Branch):
    """The subtype signal is fine texture at high resolution: stages 1-3 are pooled, not the bottleneck.

    The region is the predicted `roi_label` (-1: the last label); where none is predicted it is all
    foreground, where there is none either, the whole patch. With `detach_roi` the class loss shapes features,
    not masks; without, voxels weigh by their probability and the gradient reaches it. In training the target
    stands in for the prediction in a `target_share` of the cases that have a lesion.
    """

    name: ClassVar[str] = "roi_pooled"
    reads_target: ClassVar[bool] = True
    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    hidden: int = 128
    dropout: float = 0.3
    detach_roi: bool = True
    target_share: float = 0.5

    def depth(self, num_stages: int) -> int:
        """Down to the last of its stages."""
        return present(self.stages, num_stages)[-1] + 1

    def build(
        self, stages: Sequence[Stage], num_classes: int, style: BlockStyle, anatomy: Anatomy
    ) -> BranchModule:
        """The head; stages that a shallow network lacks are left out."""
        check_at_least(self.name, "hidden", self.hidden, 1)
        check_share(self.name, "dropout", self.dropout)
        check_share(self.name, "target_share", self.target_share)
        anatomy.channel(self.roi_label)
        used = present(self.stages, len(stages))
        width = 3 * sum(stages[level].channels for level in used)
        head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, num_classes),
        )
        rule = RegionRule(
            anatomy=anatomy, label=self.roi_label, detach=self.detach_roi, target_share=self.target_share
        )
        return RoiPooledHead(head, used, rule, detach_features=self.detach_features)


@final
class RoiPooledHead(BranchModule):
    """Pools each used stage inside the region, then a small perceptron."""

    def __init__(
        self, head: nn.Module, used: tuple[int, ...], rule: RegionRule, *, detach_features: bool
    ) -> None:
        super().__init__(detach_features=detach_features)
        self.head = head
        self.used = used
        self.rule = rule

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K)."""
        region = self.rule.mask(label_logits, guide)
        pooled = [pool_inside(features[level].float(), region) for level in self.used]
        return self.head(torch.cat(pooled, dim=1))


def pool_inside(features: Tensor, region: Tensor) -> Tensor:
    """(B, 3C): mean and standard deviation weighted by the region's share of each cell, and the maximum.

    The region shrinks by area for the weights and by maximum for the support: a small lesion never vanishes.
    """
    dims = features.ndim - 2
    size = tuple(features.shape[2:])
    share = MEAN_POOLS[dims](region, size).flatten(2)
    support = MAX_POOLS[dims](region, size).flatten(2) > 0
    flat = features.flatten(2)
    weight = share / share.sum(dim=2, keepdim=True).clamp_min(SMALLEST_SHARE)
    mean = (flat * weight).sum(dim=2)
    variance = ((flat - mean.unsqueeze(2)).square() * weight).sum(dim=2)
    highest = flat.masked_fill(~support, torch.finfo(flat.dtype).min).amax(dim=2)
    return torch.cat([mean, (variance + SMALLEST_VARIANCE).sqrt(), highest], dim=1)
