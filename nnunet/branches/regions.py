"""The region that a branch looks at: the lesion, else the organ, else everything; smoothing of its map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.lesion import Anatomy

SLAB_VARIANCE = 1 / 12  # of a voxel, in its own edges: the spread of a region of one voxel is not 0
SMOOTHING_REACH = 3.0  # standard deviations after which the Gaussian is cut off
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRule:
    """How the region of a case is found.

    The predicted lesion; where none is predicted the predicted organ; where there is none either, the whole
    patch: one choice per case. With `detach` the class loss shapes features, never masks. In training a case
    whose target has a lesion uses it in place of the prediction with probability `target_share`: the branch
    has masks to learn from before the segmentation is any good, and has met the predictions it will be given.
    """

    anatomy: Anatomy
    label: int = -1
    detach: bool = True
    target_share: float = 0.0

    def mask(self, label_logits: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, 1, *spatial) float32, 0 outside the region: 1 inside or, where a gradient is to flow, the
        probability."""
        logits = label_logits.detach() if self.detach else label_logits
        lesion, organ = self.anatomy.is_lesion(logits, self.label), self.anatomy.is_organ(logits)
        region = _first_not_empty(lesion, organ, lesion, organ).float()
        if not self.detach:
            region = region * self._probability(logits, lesion, organ)
        return self._guided(region, guide)

    def probability(self, label_logits: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, 1, *spatial) float32 probability of the region, nowhere cut off."""
        logits = label_logits.detach() if self.detach else label_logits
        lesion, organ = self.anatomy.is_lesion(logits, self.label), self.anatomy.is_organ(logits)
        return self._guided(self._probability(logits, lesion, organ), guide)

    def _probability(self, logits: Tensor, lesion: Tensor, organ: Tensor) -> Tensor:
        return _first_not_empty(
            lesion, organ, self.anatomy.lesion(logits, self.label), self.anatomy.organ(logits)
        )

    def _guided(self, region: Tensor, guide: Tensor | None) -> Tensor:
        if guide is None or self.target_share == 0:
            return region
        truth = self.anatomy.is_lesion_in(guide, self.label)
        chance = torch.rand(region.shape[0], *[1] * (region.ndim - 1), device=region.device)
        taken = _anywhere(truth) & (chance < self.target_share)
        return torch.where(taken, truth.float(), region)


def region_shape(region: Tensor) -> Tensor:
    """(B, 1 + spatial axes) float32 of a region (B, 1, *spatial) that is not empty: size, spread per axis.

    Both are logarithms: of the number of voxels, a share of one counting as such, and of the edge of the box
    with the same standard deviation along the axis, in voxels. 0 lies half-way between one voxel and the
    whole patch. Voxels of the planned grid all have the same size, so a plan's millilitres differ by a
    constant.
    """
    weight = region.float()
    axes = range(2, weight.ndim)
    mass = weight.flatten(1).sum(dim=1)
    known = [mass.log() - 0.5 * math.log(weight[0].numel())]
    for axis in axes:
        size = weight.shape[axis]
        profile = weight.sum(dim=[1, *(other for other in axes if other != axis)]) / mass.unsqueeze(1)
        place = torch.arange(size, device=weight.device, dtype=torch.float32)
        mean = (profile * place).sum(dim=1, keepdim=True)
        variance = (profile * (place - mean).square()).sum(dim=1) + SLAB_VARIANCE
        known.append(0.5 * (variance / SLAB_VARIANCE).log() - 0.5 * math.log(size))
    return torch.stack(known, dim=1)


def smoothed(maps: Tensor, sigma_voxels: float) -> Tensor:
    """(B, 1, *spatial) blurred by a Gaussian along every axis; the edge goes on beyond the patch."""
    if sigma_voxels == 0:
        return maps
    dims = maps.ndim - 2
    reach = max(round(SMOOTHING_REACH * sigma_voxels), 1)
    place = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    weight = torch.exp(-0.5 * (place / sigma_voxels).square())
    weight = weight / weight.sum()
    for axis in range(dims):
        padding = [0, 0] * dims
        first = 2 * (dims - 1 - axis)  # F.pad counts axes from the last
        padding[first : first + 2] = [reach, reach]
        shape = [1] * maps.ndim
        shape[2 + axis] = -1
        maps = CONVOLUTIONS[dims](F.pad(maps, padding, mode="replicate"), weight.view(shape))
    return maps


def _anywhere(mask: Tensor) -> Tensor:
    """(B, 1, ...) boolean: whether a case's mask has a voxel."""
    return mask.flatten(1).any(dim=1).view(-1, *[1] * (mask.ndim - 1))


def _first_not_empty(lesion: Tensor, organ: Tensor, as_lesion: Tensor, as_organ: Tensor) -> Tensor:
    """Per case `as_lesion` where it has a lesion, else `as_organ` where it has an organ, else ones."""
    fallback = torch.where(_anywhere(organ), as_organ, torch.ones_like(as_organ))
    return torch.where(_anywhere(lesion), as_lesion, fallback)
