"""Features of the shallow stages, pooled inside the predicted lesion: mean, deviation and maximum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet.blocks import BlockStyle
from nnunet.branches.base import Branch
from utils.contracts import Stage

SMALLEST_VARIANCE = 1e-6  # keeps the gradient of the square root finite
POOLS = {2: (F.adaptive_max_pool2d, F.adaptive_avg_pool2d), 3: (F.adaptive_max_pool3d, F.adaptive_avg_pool3d)}


@final
@dataclass(frozen=True)
class RoiPooled(Branch):
    """The subtype signal is fine texture at high resolution: stages 1-3 are pooled, not the bottleneck.

    The region is the predicted `roi_label` (-1: the last label); where none is predicted it is all
    foreground, where there is none either, the whole patch. It is detached: the class loss shapes features,
    not masks.
    """

    name: ClassVar[str] = "roi_pooled"
    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    hidden: int = 128
    dropout: float = 0.3

    def build(self, stages: Sequence[Stage], num_classes: int, style: BlockStyle) -> nn.Module:
        """The head; stages that a shallow network lacks are left out."""
        used = tuple(level for level in self.stages if level < len(stages)) or (len(stages) - 1,)
        width = 3 * sum(stages[level].channels for level in used)
        head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, num_classes),
        )
        return RoiPooledHead(head, used, self.roi_label)


@final
class RoiPooledHead(nn.Module):
    """Pools each used stage inside the region, then a small perceptron."""

    def __init__(self, head: nn.Module, used: tuple[int, ...], roi_label: int) -> None:
        super().__init__()
        self.head = head
        self.used = used
        self.roi_label = roi_label

    def forward(self, features: tuple[Tensor, ...], label_logits: Tensor) -> Tensor:
        """Class logits (B, K)."""
        with torch.autocast(label_logits.device.type, enabled=False):
            region = region_of_interest(label_logits.detach(), self.roi_label)
            pooled = [pool_inside(features[level].float(), region) for level in self.used]
            return self.head(torch.cat(pooled, dim=1))


def region_of_interest(label_logits: Tensor, roi_label: int) -> Tensor:
    """(B, 1, *spatial) float mask: the label, else all foreground, else everything; one choice per patch."""
    label = label_logits.argmax(dim=1, keepdim=True)
    lesion = label == roi_label % label_logits.shape[1]
    organ = label > 0
    spatial = tuple(range(1, label.ndim))
    fallback = torch.where(organ.any(dim=spatial, keepdim=True), organ, torch.ones_like(organ))
    return torch.where(lesion.any(dim=spatial, keepdim=True), lesion, fallback).float()


def pool_inside(features: Tensor, region: Tensor) -> Tensor:
    """(B, 3C): mean and standard deviation weighted by the region's share of each cell, and the maximum.

    The region shrinks by area for the weights and by maximum for the support: a small lesion never vanishes.
    """
    max_pool, mean_pool = POOLS[features.ndim - 2]
    size = features.shape[2:]
    share = mean_pool(region, size).flatten(2)
    support = max_pool(region, size).flatten(2) > 0
    flat = features.flatten(2)
    weight = share / share.sum(dim=2, keepdim=True).clamp_min(SMALLEST_VARIANCE)
    mean = (flat * weight).sum(dim=2)
    variance = ((flat - mean.unsqueeze(2)).square() * weight).sum(dim=2)
    highest = flat.masked_fill(~support, torch.finfo(flat.dtype).min).amax(dim=2)
    return torch.cat([mean, (variance + SMALLEST_VARIANCE).sqrt(), highest], dim=1)
