"""What the channels of logits and of targets mean: labels or overlapping regions, and what is ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nnunet.lesion import REGION_THRESHOLD, Anatomy
from utils.contracts import Plan


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCoding:
    """How a plan's labels are coded, in logits (B, C, *spatial) and in the targets of a Batch.

    Without regions C is the number of labels and a softmax makes the logits probabilities; what is scored are
    the labels above 0. With regions there is one channel for each, a sigmoid makes it a probability, and all
    of them are scored. F is the number of what is scored.
    """

    num_labels: int
    regions: tuple[tuple[int, ...], ...] = ()
    ignore_label: int | None = None

    @staticmethod
    def of_plan(plan: Plan) -> LabelCoding:
        """The coding of a plan's labels."""
        return LabelCoding(num_labels=plan.num_labels, regions=plan.regions, ignore_label=plan.ignore_label)

    @property
    def num_scored(self) -> int:
        """F: the regions, or the labels but the background."""
        return len(self.regions) or self.num_labels - 1

    @property
    def anatomy(self) -> Anatomy:
        """Where lesion and organ are."""
        return Anatomy(num_labels=self.num_labels, regions=self.regions)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C, *spatial) float32."""
        return logits.float().sigmoid() if self.regions else logits.float().softmax(dim=1)

    def scored_probabilities(self, logits: Tensor) -> Tensor:
        """(B, F, *spatial) float32."""
        probabilities = self.probabilities(logits)
        return probabilities if self.regions else probabilities[:, 1:]

    def predicted(self, logits: Tensor) -> Tensor:
        """(B, F, *spatial) boolean: the region has more than one half, or the label more than all others."""
        if self.regions:
            return logits > REGION_THRESHOLD
        return logits.argmax(dim=1, keepdim=True) == self._values(logits)

    def truth(self, target: Tensor) -> Tensor:
        """(B, F, *spatial) boolean; False where the voxel is ignored."""
        if self.regions:
            return target[:, : len(self.regions)] > 0
        return target == self._values(target)

    def counted(self, target: Tensor) -> Tensor | None:
        """(B, 1, *spatial) boolean: the voxels that were annotated; None where all of them are."""
        if self.ignore_label is None:
            return None
        if self.regions:
            return target[:, len(self.regions) :] == 0
        return target != self.ignore_label

    def _values(self, maps: Tensor) -> Tensor:
        """The labels above 0 along the channels of `maps`."""
        values = torch.arange(1, self.num_labels, device=maps.device)
        return values.view(1, -1, *[1] * (maps.ndim - 2))
