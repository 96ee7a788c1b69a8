"""Segmentation and class loss together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from nnunet.losses.balancing import TaskBalance
from nnunet.losses.base import CaseLoss
from nnunet.losses.segmentation import SegmentationLoss
from utils.contracts import NO_CLASS, Batch, ModelOutput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTerms:
    """The total that is minimised, and its parts, each a scalar tensor."""

    total: Tensor
    segmentation: Tensor
    classification: Tensor


@final
class MultiTaskLoss(nn.Module):
    """The loss of the segmentation, plus the weighted loss of the class.

    A patch without a voxel of the lesion (the last label) cannot show the class: its class loss weighs
    `lesion_free_weight`. Of a patch that nobody annotated nobody knows: 1. `progress` of the training, from 0
    to 1, is set from outside before a step; some class losses change with it. Where the segmentation does not
    learn its loss is not computed and counts 0. A `balance` learns the weights, in place of the fixed one.
    """

    def __init__(
        self,
        class_loss: CaseLoss,
        segmentation: SegmentationLoss,
        *,
        class_loss_weight: float,
        lesion_free_weight: float,
        segmentation_learns: bool = True,
        balance: TaskBalance | None = None,
    ) -> None:
        super().__init__()
        self.class_loss = class_loss
        self.segmentation = segmentation
        self.class_loss_weight = class_loss_weight
        self.lesion_free_weight = lesion_free_weight
        self.segmentation_learns = segmentation_learns
        self.balance = balance
        self.progress = 0.0

    def forward(self, output: ModelOutput, batch: Batch) -> LossTerms:
        """The loss terms of one batch, averaged over its cases by weight."""
        weights = batch.case_weights
        if weights is None:
            weights = torch.ones(len(batch.case_ids), device=batch.image.device)
        mask_weights = weights if batch.mask_weights is None else batch.mask_weights
        segmentation = torch.zeros((), device=weights.device)
        if self.segmentation_learns:
            # In validation ranks have unequal numbers of cases: they must not wait for each other.
            segmentation = self.segmentation(
                output.label_logits, batch.label, mask_weights, across_ranks=self.training
            )
        classification = self._class_loss(output, batch, weights, has_mask=mask_weights > 0)
        return LossTerms(
            total=self._total(segmentation, classification),
            segmentation=segmentation.detach(),
            classification=classification.detach(),
        )

    def task_weights(self) -> dict[str, Tensor]:
        """The learned weights by the name of their task, without a gradient; empty where they are fixed."""
        if self.balance is None:
            return {}
        segmentation, classification = self.balance.weights()
        return {"segmentation": segmentation, "class": classification}

    def _total(self, segmentation: Tensor, classification: Tensor) -> Tensor:
        if self.balance is None:
            return segmentation + self.class_loss_weight * classification
        # Dice is counted negative: with the 1 that it lacks no loss falls below 0.
        return self.balance((segmentation + 1, classification))

    def _class_loss(self, output: ModelOutput, batch: Batch, weights: Tensor, *, has_mask: Tensor) -> Tensor:
        if output.class_logits is None or batch.class_target is None:
            return torch.zeros((), device=weights.device)
        coding, target = self.segmentation.coding, batch.label[0]
        shows_lesion = coding.anatomy.is_lesion_in(target).flatten(1).any(dim=1)
        counted = coding.counted(target)
        is_known = has_mask if counted is None else has_mask & counted.flatten(1).any(dim=1)
        emphasis = torch.where(shows_lesion | ~is_known, 1.0, self.lesion_free_weight)
        losses = self.class_loss(output.class_logits, batch.class_target, self.progress)
        known = weights * (batch.class_target != NO_CLASS)
        # Dividing by the number of cases keeps the meaning of the factors: a light patch counts less.
        return (losses * known * emphasis).sum() / known.sum().clamp_min(1.0)
