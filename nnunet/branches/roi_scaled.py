"""Bottleneck features scaled by the map of the lesion, then a convolutional head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, convolution
from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_share, present
from nnunet.branches.pooling import MEAN_POOLS
from nnunet.branches.regions import RegionRule, smoothed
from utils.contracts import Shape, Stage

SMALLEST_PEAK = 1e-8  # of a map that is divided by its largest value


@final
@dataclass(frozen=True)
class RoiScaled(Branch):
    """The probability of the lesion, smoothed by a Gaussian, weighs the cells of one stage.

    It shrinks by area and is divided by its largest value, so a small lesion keeps the weight 1 in its own
    cell. In training the target stands in for the prediction in a `target_share` of the cases that have a
    lesion; where no lesion is predicted the organ weighs, without organ all cells count alike.
    """

    name: ClassVar[str] = "roi_scaled"
    reads_target: ClassVar[bool] = True
    stage: int = -1
    roi_label: int = -1
    sigma: float = 2.0  # of the Gaussian, in voxels of the patch; 0: none
    target_share: float = 0.5
    detach_roi: bool = True
    stride: int = 2
    layers: int = 3
    hidden: int = 256
    dropout: float = 0.5

    def depth(self, num_stages: int) -> int:
        """Down to its stage."""
        return present((self.stage,), num_stages)[-1] + 1

    def build(self, site: BranchSite) -> BranchModule:
        """The head for one stage of the site, the last where the network lacks the one that was asked for."""
        for option, least in (("sigma", 0), ("stride", 1), ("layers", 0), ("hidden", 1)):
            check_at_least(self.name, option, getattr(self, option), least)
        check_share(self.name, "dropout", self.dropout)
        check_share(self.name, "target_share", self.target_share)
        site.anatomy.channel(self.roi_label)
        (level,) = present((self.stage,), len(site.stages))
        rule = RegionRule(
            anatomy=site.anatomy, label=self.roi_label, detach=self.detach_roi, target_share=self.target_share
        )
        return RoiScaledHead(
            LesionMap(rule, level=level, sigma_voxels=self.sigma),
            self._convolutions(site.stages[level], site.style),
            self._linear(site.num_classes, site.style),
            detach_features=self.detach_features,
        )

    def _convolutions(self, stage: Stage, style: BlockStyle) -> nn.Module:
        # A flat kernel never steps across slices: it would skip some of them unseen.
        first, second, third = (self.stride if size > 1 else 1 for size in stage.kernel)
        stride: Shape = (first, second, third)
        return nn.Sequential(
            convolution(stage.channels, self.hidden, stage.kernel, stride, style),
            nn.LeakyReLU(style.negative_slope),
            convolution(self.hidden, self.hidden, stage.kernel, stride, style),
            nn.LeakyReLU(style.negative_slope),
        )

    def _linear(self, num_classes: int, style: BlockStyle) -> nn.Module:
        hidden: list[nn.Module] = []
        for _ in range(self.layers):
            hidden += [nn.Linear(self.hidden, self.hidden), nn.LeakyReLU(style.negative_slope)]
        return nn.Sequential(*hidden, nn.Dropout(self.dropout), nn.Linear(self.hidden, num_classes))


@dataclass(frozen=True, slots=True)
class LesionMap:
    """The weights of the cells of one stage."""

    rule: RegionRule
    level: int
    sigma_voxels: float

    def weights(self, label_logits: Tensor, guide: Tensor | None, size: torch.Size) -> Tensor:
        """(B, 1, *size) float32 between 0 and 1, the largest of each case 1."""
        fine = smoothed(self.rule.probability(label_logits, guide), self.sigma_voxels)
        coarse = MEAN_POOLS[fine.ndim - 2](fine, tuple(size))
        peak = coarse.flatten(1).amax(dim=1).clamp_min(SMALLEST_PEAK)
        return coarse / peak.view(-1, *[1] * (coarse.ndim - 1))


@final
class RoiScaledHead(BranchModule):
    """Scaling, convolutions, pooling, linear layers."""

    def __init__(
        self, lesion_map: LesionMap, convolutions: nn.Module, linear: nn.Module, *, detach_features: bool
    ) -> None:
        super().__init__(detach_features=detach_features)
        self.lesion_map = lesion_map
        self.convolutions = convolutions
        self.linear = linear

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K)."""
        maps = features[self.lesion_map.level].float()
        weights = self.lesion_map.weights(label_logits, guide, maps.shape[2:])
        return self.linear(self.convolutions(maps * weights).flatten(2).mean(dim=2))
