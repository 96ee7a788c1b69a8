"""One row of numbers per case from a frozen encoder: how the predicted lesion looks, its volume and shape."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet.blocks import flatten_depth
from nnunet.branches.base import present
from nnunet.branches.pooling import MAX_POOLS, MEAN_POOLS
from nnunet.branches.regions import RegionRule, region_shape
from nnunet.inference.sliding_window import (
    WindowRule,
    blend_weight,
    centred_padding,
    cut_window,
    window_places,
)
from nnunet.linear_classifier import FeatureRule
from utils.contracts import Spacing

SMALLEST_VOLUME_ML = (
    1e-3  # stands for an empty structure, whose logarithm does not exist: one cubic millimetre
)

ML_PER_MM3 = 1e-3

Encoder = Callable[[Tensor], Sequence[Tensor]]  # (B, C, D, H, W) -> maps (B, C_i, *spatial_i), finest first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedVolume:
    """A case that the network has segmented: image (1, C, D, H, W), label probabilities (1, L, D, H, W).

    `spacing_mm` are the edges of a voxel of this grid along D, H and W.
    """

    image: Tensor
    label_probs: Tensor
    spacing_mm: Spacing


@torch.inference_mode()
def case_features(
    encoder: Encoder, volume: PredictedVolume, rule: FeatureRule, windows: WindowRule
) -> np.ndarray:
    """(F,) float64: mean, deviation and maximum of each stage's channels, then the structures' log volumes.

    Behind them, where the rule has them, the same three of the image's channels and the region's spread.
    The features are those inside the predicted lesion; where none is predicted, inside the organ; where there
    is none either, everywhere. Patch, batch size and coding are those of `windows`.
    """
    windows = replace(windows, overlap=rule.overlap, blend=rule.blend)
    coding = windows.coding_of(volume.label_probs.shape[1])
    # Probabilities in place of logits: the likeliest label is the same, one half becomes the threshold zero.
    scores = volume.label_probs - 0.5
    region = RegionRule(anatomy=coding.anatomy, label=rule.roi_label).mask(scores)
    voxels = coding.predicted(scores).flatten(2).sum(dim=2)[0]
    voxel_ml = math.prod(volume.spacing_mm) * ML_PER_MM3
    log_volumes = (voxels.double() * voxel_ml).clamp_min(SMALLEST_VOLUME_ML).log()
    known = [pooled_features(encoder, volume.image, region, rule.stages, windows), log_volumes]
    if rule.image:
        known.append(image_statistics(volume.image, region))
    if rule.shape:
        known.append(log_spread(region, volume.spacing_mm))
    return torch.cat(known).cpu().numpy()


def image_statistics(image: Tensor, region: Tensor) -> Tensor:
    """(3C,) float64 of an image (1, C, D, H, W): means, deviations, maxima inside `region` (1, 1, D, H, W).

    Instance normalisation takes the level of intensities out of an encoder's maps; here it is kept.
    """
    inside = image[0][:, region[0, 0] > 0].float()
    deviation, mean = torch.std_mean(inside, dim=1, correction=0)
    return torch.cat([mean, deviation, inside.amax(dim=1)]).double()


def log_spread(region: Tensor, spacing_mm: Spacing) -> Tensor:
    """(3,) float64 of `region` (1, 1, D, H, W): per axis the logarithm of an edge in millimetres.

    The edge is that of the box with the same standard deviation, as in `region_shape`. It depends on the
    region alone, not on the size of the volume around it.
    """
    size = torch.tensor(region.shape[2:], dtype=torch.float64)
    # region_shape counts from half-way between one voxel and the whole volume.
    log_voxels = region_shape(region)[0, 1:].double() + 0.5 * size.log().to(region.device)
    return log_voxels + log_voxels.new_tensor(spacing_mm).log()


def pooled_features(
    encoder: Encoder, image: Tensor, region: Tensor, stages: Sequence[int], windows: WindowRule
) -> Tensor:
    """(3 * sum of C_i,) float64: per stage mean, deviation and maximum of the whole case inside `region`.

    `image` (1, C, D, H, W), `region` (1, 1, D, H, W) of zeros and ones, not empty. Every voxel of the region
    counts once, however many windows cover it: its weight is shared out among them as blended predictions
    are. A coarse cell counts by the weight of its voxels. The encoder sees the windows it was trained on, and
    only those that hold a voxel of the region.
    """
    padding = centred_padding(tuple(image.shape[2:]), windows.patch)
    image, region = F.pad(image, padding), F.pad(region.float(), padding)
    places = [
        place
        for place in window_places(tuple(image.shape[2:]), windows)
        if bool(cut_window(region, place, windows.patch).any())
    ]
    weight = blend_weight(windows).to(image.device)
    covered = torch.zeros_like(region)
    for place in places:
        cut_window(covered, place, windows.patch).add_(weight)
    # Where no window came there is no region.
    share = region / covered.clamp_min(torch.finfo(torch.float32).tiny)
    sums: dict[int, list[StageSums]] = {}
    for first in range(0, len(places), windows.batch_size):
        here = places[first : first + windows.batch_size]
        images, masks, shares = (
            torch.cat([cut_window(part, place, windows.patch) for place in here])
            for part in (image, region, share)
        )
        maps = encoder(images)
        for stage in present(stages, len(maps)):
            sums.setdefault(stage, []).append(stage_sums(maps[stage], masks, shares * weight))
    return torch.cat([_statistics(of_stage) for of_stage in sums.values()])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageSums:
    """Of some windows of one stage: the weight, and per channel weighted sum, sum of squares, maximum."""

    weight: Tensor
    values: Tensor
    squares: Tensor
    highest: Tensor


def stage_sums(maps: Tensor, masks: Tensor, weights: Tensor) -> StageSums:
    """Sums over (B, C, *spatial) maps; masks and weights of their voxels are (B, 1, D, H, W).

    Both shrink to the size of the maps, weights by area and masks by maximum: a small lesion never vanishes.
    """
    dims, size = maps.ndim - 2, tuple(maps.shape[2:])
    axes = (0, *range(2, maps.ndim))
    weight = MEAN_POOLS[dims](flatten_depth(weights, dims), size)
    support = MAX_POOLS[dims](flatten_depth(masks, dims), size) > 0
    values = maps.float()
    return StageSums(
        weight=weight.sum(dtype=torch.float64),
        values=(values * weight).sum(dim=axes, dtype=torch.float64),
        squares=(values.square() * weight).sum(dim=axes, dtype=torch.float64),
        highest=values.masked_fill(~support, -torch.inf).amax(dim=axes),
    )


def _statistics(parts: Sequence[StageSums]) -> Tensor:
    """(3C,) float64: means, deviations, maxima of one stage over all its windows."""
    weight = torch.stack([part.weight for part in parts]).sum()
    mean = torch.stack([part.values for part in parts]).sum(dim=0) / weight
    mean_square = torch.stack([part.squares for part in parts]).sum(dim=0) / weight
    deviation = (mean_square - mean.square()).clamp_min(0).sqrt()
    highest = torch.stack([part.highest for part in parts]).amax(dim=0)
    return torch.cat([mean, deviation, highest.double()])


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of the names and values of all weights, as hexadecimal text: which network made the features.

    Two checkpoints of the same weights have the same hash, whatever else they hold.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
