"""Dice and cross-entropy, or focal loss, of the label logits at every resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nnunet.label_coding import LabelCoding
from nnunet.losses.cross_entropy import voxel_cross_entropy
from nnunet.losses.deep_supervision import supervision_weights
from nnunet.losses.dice import soft_dice_loss


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationLoss:
    """The loss of label logits; `batch_dice` pools the statistics of Dice over the batch, of all ranks.

    `focal_gamma` 0 is the cross-entropy.
    """

    coding: LabelCoding
    batch_dice: bool
    focal_gamma: float = 0.0

    def __call__(
        self,
        logits: Sequence[Tensor],
        labels: Sequence[Tensor],
        case_weights: Tensor,
        *,
        across_ranks: bool = False,
    ) -> Tensor:
        """Mean over the resolutions, halved at every step down; both finest first, `case_weights` (B,).

        `across_ranks`: all ranks come here together, as in a training step; a batch Dice then is that of
        their batches as one, and so is a cross-entropy with an ignore label.
        """
        shares = supervision_weights(len(logits))
        levels = zip(shares, logits, labels, strict=False)  # a network in evaluation has the finest alone
        return torch.stack(
            [
                share * self._level(maps, label, case_weights, across_ranks=across_ranks)
                for share, maps, label in levels
            ]
        ).sum()

    def _level(self, logits: Tensor, label: Tensor, case_weights: Tensor, *, across_ranks: bool) -> Tensor:
        dice = soft_dice_loss(
            logits,
            label,
            case_weights,
            pooled=self.batch_dice,
            coding=self.coding,
            across_ranks=across_ranks,
        )
        return dice + voxel_cross_entropy(
            logits,
            label,
            case_weights,
            coding=self.coding,
            gamma=self.focal_gamma,
            across_ranks=across_ranks,
        )
