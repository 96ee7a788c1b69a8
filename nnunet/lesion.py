"""Where lesion and organ are, in label logits and in targets, for labels and for overlapping regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError

REGION_THRESHOLD = 0.0  # logit above which a region is predicted: probability 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Which outputs of a network show the lesion and which the organ.

    Without regions the logits are those of a softmax over `num_labels` labels, of which 0 is the background.
    With regions each channel is a sigmoid of its own; a label is read from the smallest region that holds
    it, the later one of equals. The lesion is a label, counted from the last where negative; the organ is
    everything but the background, so it holds the lesion.
    """

    num_labels: int
    regions: tuple[tuple[int, ...], ...] = ()

    def channel(self, label: int = -1) -> int:
        """The channel of the logits that shows `label`; UserError if none does."""
        value = label + self.num_labels if label < 0 else label
        if not 0 < value < self.num_labels:
            raise UserError(
                f"The label of the lesion should lie between 1 and {self.num_labels - 1}, or count from the "
                f"last (-1), got {label}."
            )
        if not self.regions:
            return value
        holders = [index for index, region in enumerate(self.regions) if value in region]
        if not holders:
            raise UserError(
                f"Label {value} is to mark the lesion, but none of the regions {self.regions} has it."
            )
        return min(holders, key=lambda index: (len(self.regions[index]), -index))

    def lesion(self, label_logits: Tensor, label: int = -1) -> Tensor:
        """(B, 1, *spatial) float32 probability of the lesion."""
        return self._probabilities(label_logits)[:, self.channel(label)].unsqueeze(1)

    def organ(self, label_logits: Tensor) -> Tensor:
        """(B, 1, *spatial) float32 probability of anything but background.

        Regions overlap: the most probable one bounds their union from below, and is it where they are nested.
        """
        probabilities = self._probabilities(label_logits)
        if self.regions:
            return probabilities.amax(dim=1, keepdim=True)
        return 1 - probabilities[:, :1]

    def is_lesion(self, label_logits: Tensor, label: int = -1) -> Tensor:
        """(B, 1, *spatial) boolean: the lesion is the likeliest label, or its region above one half."""
        if self.regions:
            return label_logits[:, self.channel(label)].unsqueeze(1) > REGION_THRESHOLD
        return label_logits.argmax(dim=1, keepdim=True) == self.channel(label)

    def is_organ(self, label_logits: Tensor) -> Tensor:
        """(B, 1, *spatial) boolean: anything but background is predicted."""
        if self.regions:
            return label_logits.amax(dim=1, keepdim=True) > REGION_THRESHOLD
        return label_logits.argmax(dim=1, keepdim=True) > 0

    def is_lesion_in(self, target: Tensor, label: int = -1) -> Tensor:
        """(B, 1, *spatial) boolean: where a batch's finest target has the lesion, label map or regions."""
        if self.regions:
            return target[:, self.channel(label)].unsqueeze(1) == 1
        return target == self.channel(label)

    def _probabilities(self, label_logits: Tensor) -> Tensor:
        logits = label_logits.float()
        return torch.sigmoid(logits) if self.regions else torch.softmax(logits, dim=1)
