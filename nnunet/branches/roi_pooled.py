"""Features of the shallow stages, pooled inside the predicted lesion: mean, deviation and maximum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_share, present
from nnunet.branches.pooling import MAX_POOLS, MEAN_POOLS
from nnunet.branches.regions import RegionRule, region_shape
from nnunet.branches.standardise import RunningStandardiser

SMALLEST_VARIANCE = 1e-6  # keeps the gradient of the square root finite
SMALLEST_SHARE = 1e-12  # of a region in all cells together: keeps a division defined


@final
@dataclass(frozen=True)
class RoiPooled(Branch):
    """The subtype signal is fine texture at high resolution: stages 1-3 are pooled, not the bottleneck.

    Instance normalisation takes the level of intensities out of all features, and pooling the size of the
    region: with `image` the image is pooled too, with `shape` extent and spread of the region are told.
    The region is the predicted `roi_label` (-1: the last label); where none is predicted it is all
    foreground, where there is none either, the whole patch. With `detach_roi` the class loss shapes features,
    not masks; without, voxels weigh by their probability and the gradient reaches it. In training the target
    stands in for the prediction in a `target_share` of the cases that have a lesion.
    """

    name: ClassVar[str] = "roi_pooled"
    reads_target: ClassVar[bool] = True
    reads_image: ClassVar[bool] = True
    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    hidden: int = 128
    dropout: float = 0.3
    detach_roi: bool = True
    target_share: float = 0.5
    image: bool = True
    shape: bool = True

    def depth(self, num_stages: int) -> int:
        """Down to the last of its stages."""
        return present(self.stages, num_stages)[-1] + 1

    def build(self, site: BranchSite) -> BranchModule:
        """The head; stages that a shallow network lacks are left out."""
        check_at_least(self.name, "hidden", self.hidden, 1)
        check_share(self.name, "dropout", self.dropout)
        check_share(self.name, "target_share", self.target_share)
        site.anatomy.channel(self.roi_label)
        used = present(self.stages, len(site.stages))
        told = (3 * site.image_channels if self.image else 0) + (1 + site.style.dims if self.shape else 0)
        widths = [*(3 * site.stages[level].channels for level in used), *([told] if told else [])]
        head = nn.Sequential(
            RunningStandardiser(widths),
            nn.Linear(sum(widths), self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, site.num_classes),
        )
        rule = RegionRule(
            anatomy=site.anatomy, label=self.roi_label, detach=self.detach_roi, target_share=self.target_share
        )
        pooling = RegionPooling(rule=rule, used=used, image=self.image, shape=self.shape)
        return RoiPooledHead(pooling, head, detach_features=self.detach_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionPooling:
    """What is known of a region: pooled features, and numbers beside them."""

    rule: RegionRule
    used: tuple[int, ...]
    image: bool
    shape: bool

    def pooled(self, features: tuple[Tensor, ...], region: Tensor) -> Tensor:
        """(B, 3 * channels of all used stages)."""
        return torch.cat([pool_inside(features[level].float(), region) for level in self.used], dim=1)

    def told(self, image: Tensor, region: Tensor) -> list[Tensor]:
        """(B, 3C) of the image and (B, 1 + spatial axes) of the region, where they are wanted."""
        intensity = [pool_inside(image.float(), region)] if self.image else []
        return [*intensity, region_shape(region)] if self.shape else intensity


@final
class RoiPooledHead(BranchModule):
    """Pools each used stage inside the region, then a small perceptron on standardised features."""

    def __init__(self, pooling: RegionPooling, head: nn.Module, *, detach_features: bool) -> None:
        super().__init__(detach_features=detach_features)
        self.pooling = pooling
        self.head = head

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K)."""
        region = self.pooling.rule.mask(label_logits, guide)
        known = [self.pooling.pooled(features, region), *self.pooling.told(features[-1], region)]
        return self.head(torch.cat(known, dim=1))


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
