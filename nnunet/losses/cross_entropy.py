"""Cross-entropy of voxels and of cases."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nnunet.label_coding import LabelCoding
from nnunet.losses.focal import focused
from utils.contracts import NO_CLASS

NEVER = -100  # torch's own default: no label has this value


def voxel_cross_entropy(
    logits: Tensor,
    label: Tensor,
    case_weights: Tensor,
    *,
    coding: LabelCoding | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """Mean over voxels and regions, then over cases by weight; with `gamma` above 0 the focal loss.

    `logits` (B, C, *spatial) and `label` are coded as `coding` says (None: plain labels): the cross-entropy
    is that of a softmax over labels, or of one sigmoid per region. Ignored voxels count nowhere, nor does a
    case that has no others.
    """
    coding = coding or LabelCoding(num_labels=logits.shape[1])
    counted = coding.counted(label)
    losses = focused(_cross_entropies(logits.float(), label, coding), gamma)
    if counted is None:
        return (losses.flatten(1).mean(dim=1) * case_weights).sum() / case_weights.sum().clamp_min(1.0)
    num_counted = counted.flatten(1).sum(dim=1) * losses.shape[1]
    means = (losses * counted).flatten(1).sum(dim=1) / num_counted.clamp_min(1)
    weights = case_weights * (num_counted > 0)
    return (means * weights).sum() / weights.sum().clamp_min(1.0)


def _cross_entropies(logits: Tensor, label: Tensor, coding: LabelCoding) -> Tensor:
    """(B, 1, *spatial) of labels, 0 where the voxel is ignored, or (B, R, *spatial) of regions."""
    if coding.regions:
        return F.binary_cross_entropy_with_logits(logits, coding.truth(label).float(), reduction="none")
    ignored = NEVER if coding.ignore_label is None else coding.ignore_label
    losses = F.cross_entropy(logits, label[:, 0].long(), ignore_index=ignored, reduction="none")
    return losses.unsqueeze(1)


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
