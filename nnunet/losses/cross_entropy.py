"""Cross-entropy of voxels and of cases."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from utils.contracts import NO_CLASS


def voxel_cross_entropy(logits: Tensor, label: Tensor, case_weights: Tensor) -> Tensor:
    """Mean over voxels, then over cases by weight; `logits` (B, L, *spatial), `label` (B, 1, *spatial)."""
    losses = F.cross_entropy(logits.float(), label[:, 0].long(), reduction="none")
    return (losses.flatten(1).mean(dim=1) * case_weights).sum() / case_weights.sum().clamp_min(1.0)


def case_cross_entropy(
    class_logits: Tensor, class_target: Tensor, case_weights: Tensor, emphasis: Tensor, class_weights: Tensor
) -> Tensor:
    """Mean over the cases whose class is known; 0 with a gradient of 0 where none is.

    `class_logits` (B, K), `class_target` (B,) with NO_CLASS where unknown, `case_weights` (B,) 0 for a case
    that does not count, `emphasis` (B,) and `class_weights` (K,) factors of a case's loss.
    """
    counted = case_weights * (class_target != NO_CLASS)
    target = class_target.clamp_min(0)
    losses = F.cross_entropy(class_logits.float(), target, reduction="none")
    # Dividing by the number of cases keeps the meaning of the factors: a light patch counts less.
    return (losses * counted * emphasis * class_weights[target]).sum() / counted.sum().clamp_min(1.0)
