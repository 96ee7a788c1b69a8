"""Cross-entropy of voxels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nnunet.label_coding import LabelCoding
from nnunet.losses.focal import focused

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
