"""Soft Dice over what is scored: the foreground labels, or the regions."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet.label_coding import LabelCoding
from nnunet.ranks import ranks_talk

SMOOTHING = 1e-5  # Isensee et al. 2021


def soft_dice_loss(
    logits: Tensor,
    label: Tensor,
    case_weights: Tensor,
    *,
    pooled: bool,
    coding: LabelCoding | None = None,
    across_ranks: bool = False,
) -> Tensor:
    """Negative soft Dice (Drozdzal et al. 2016), background left out, 0 at worst and -1 at best.

    `logits` (B, C, *spatial) and `label` are coded as `coding` says (None: plain labels), `case_weights` is
    (B,). Statistics are summed in float32; `pooled` sums them over the batch first (batch Dice), and with
    `across_ranks` over the batches of all ranks, which then have to come here together. A label absent from
    both counts as perfect; ignored voxels count nowhere, nor does a case that has no others. A batch without
    a weight counts 0.
    """
    coding = coding or LabelCoding(num_labels=logits.shape[1])
    spatial = tuple(range(2, logits.ndim))
    probabilities, truth = coding.scored_probabilities(logits), coding.truth(label)
    counted = coding.counted(label)
    if counted is not None:
        probabilities = probabilities * counted  # in an ignored voxel nothing is true
        case_weights = case_weights * counted.flatten(1).any(dim=1)
    overlap = (probabilities * truth).sum(dim=spatial)
    size = probabilities.sum(dim=spatial) + truth.sum(dim=spatial)
    weights = case_weights.unsqueeze(1)
    if pooled:
        sums = torch.cat([(overlap * weights).sum(dim=0), (size * weights).sum(dim=0), weights.sum(dim=0)])
        if across_ranks:
            sums = _sum_over_ranks(sums)
        overlap, size, weight = sums.split([overlap.shape[1], size.shape[1], 1])
        return -((2 * overlap + SMOOTHING) / (size + SMOOTHING)).mean() * (weight[0] > 0)
    dice = ((2 * overlap + SMOOTHING) / (size + SMOOTHING)).mean(dim=1)
    return -(dice * case_weights).sum() / case_weights.sum().clamp_min(1.0)


def _sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' `values`; the gradients of all ranks flow back to each of them.

    Every rank's loss depends on every rank's logits, so the sum of gradients is as many times too large as
    there are ranks: the mean that DistributedDataParallel takes makes it that of one process.
    """
    if not ranks_talk():
        return values
    from torch.distributed.nn.functional import all_reduce  # torch without distributed has no such module

    return all_reduce(values)
