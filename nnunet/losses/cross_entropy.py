"""Cross-entropy of voxels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.label_coding import LabelCoding
from nnunet.losses.focal import focused
from nnunet.ranks import ranks_talk

SMALLEST = 1e-8  # of a number of voxels: where none counts, the sum above it is 0 too
NEVER = -100  # torch's own default: no label has this value


def voxel_cross_entropy(
    logits: Tensor,
    label: Tensor,
    case_weights: Tensor,
    *,
    coding: LabelCoding | None = None,
    gamma: float = 0.0,
    across_ranks: bool = False,
) -> Tensor:
    """Mean over voxels and regions, then over cases by weight; with `gamma` above 0 the focal loss.

    `logits` (B, C, *spatial) and `label` are coded as `coding` says (None: plain labels): the cross-entropy
    is that of a softmax over labels, or of one sigmoid per region. With an ignore label the mean is taken
    over the annotated voxels of the batch at once, as in nnU-Net v2: a case counts by how many it has. With
    `across_ranks` that is the batch of all ranks, which then have to come here together.
    """
    coding = coding or LabelCoding(num_labels=logits.shape[1])
    counted = coding.counted(label)
    losses = focused(_cross_entropies(logits.float(), label, coding), gamma)
    if counted is None:
        return (losses.flatten(1).mean(dim=1) * case_weights).sum() / case_weights.sum().clamp_min(1.0)
    total = ((losses * counted).flatten(1).sum(dim=1) * case_weights).sum()
    num_counted = (counted.flatten(1).sum(dim=1) * losses.shape[1] * case_weights).sum()
    if across_ranks:
        num_counted = _mean_over_ranks(num_counted)
    return total / num_counted.clamp_min(SMALLEST)


def _mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of all ranks' `count`, which has no gradient.

    The mean that DistributedDataParallel takes of the ranks' gradients then is that of one large batch.
    """
    if not ranks_talk():
        return count
    shared = count.detach().clone()
    torch.distributed.all_reduce(shared)
    return shared / torch.distributed.get_world_size()


def _cross_entropies(logits: Tensor, label: Tensor, coding: LabelCoding) -> Tensor:
    """(B, 1, *spatial) of labels, 0 where the voxel is ignored, or (B, R, *spatial) of regions."""
    if coding.regions:
        return F.binary_cross_entropy_with_logits(logits, coding.truth(label).float(), reduction="none")
    ignored = NEVER if coding.ignore_label is None else coding.ignore_label
    losses = F.cross_entropy(logits, label[:, 0].long(), ignore_index=ignored, reduction="none")
    return losses.unsqueeze(1)
