"""Soft Dice over the foreground labels."""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 1e-5  # Isensee et al. 2021


def soft_dice_loss(logits: Tensor, label: Tensor, case_weights: Tensor, *, pooled: bool) -> Tensor:
    """Negative soft Dice (Drozdzal et al. 2016), background left out, 0 at worst and -1 at best.

    `logits` (B, L, *spatial), `label` (B, 1, *spatial) integer, `case_weights` (B,). Statistics are summed in
    float32; `pooled` sums them over the batch first (batch Dice). A label absent from both counts as perfect;
    a batch without a weight counts 0.
    """
    probabilities = logits.float().softmax(dim=1)[:, 1:]
    spatial = tuple(range(2, logits.ndim))
    labels = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * len(spatial))
    truth = label == labels
    overlap = (probabilities * truth).sum(dim=spatial)
    size = probabilities.sum(dim=spatial) + truth.sum(dim=spatial)
    weights = case_weights.unsqueeze(1)
    if pooled:
        overlap, size = (overlap * weights).sum(dim=0), (size * weights).sum(dim=0)
        return -((2 * overlap + SMOOTHING) / (size + SMOOTHING)).mean() * (case_weights.sum() > 0)
    dice = ((2 * overlap + SMOOTHING) / (size + SMOOTHING)).mean(dim=1)
    return -(dice * case_weights).sum() / case_weights.sum().clamp_min(1.0)
