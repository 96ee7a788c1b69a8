"""The family of class losses: one number per case, built from the class counts of the training cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.losses.base import CaseLoss, ClassLoss
from utils.errors import UserError
from utils.registry import Registry

SMALLEST_MISS = 1e-8  # keeps the derivative of a power below 1 finite where a case is certain


@final
@dataclass(frozen=True)
class CrossEntropy(ClassLoss):
    """Cross-entropy against the class, or, smoothed, against a share of it spread over all classes."""

    name: ClassVar[str] = "cross_entropy"
    weights: str = "inverse"
    smoothing: float = 0.0

    def build(self, counts: Sequence[int]) -> CaseLoss:
        """The loss; `smoothing` (Szegedy et al. 2016) lies between 0 and 1."""
        if not 0 <= self.smoothing <= 1:
            raise UserError(f"{self.name}: smoothing should lie between 0 and 1, got {self.smoothing:g}.")
        return ShiftedCrossEntropy(self.class_weights(counts), torch.zeros(len(counts)), self.smoothing)


@final
@dataclass(frozen=True)
class Focal(ClassLoss):
    """Cross-entropy times (1 - p)^gamma, case by case: certain cases fade (Lin et al. 2017)."""

    name: ClassVar[str] = "focal"
    weights: str = "inverse"
    gamma: float = 2.0

    def build(self, counts: Sequence[int]) -> CaseLoss:
        """The loss; `gamma` is at least 0, where it is the cross-entropy."""
        if not self.gamma >= 0:
            raise UserError(f"{self.name}: gamma should be at least 0, got {self.gamma:g}.")
        return FocalLoss(self.class_weights(counts), self.gamma)


@final
@dataclass(frozen=True)
class LogitAdjusted(ClassLoss):
    """Cross-entropy of logits plus tau times the log of the class's share (Menon et al. 2021).

    The plain logits, which prediction uses, are then those of balanced classes. A class without a training
    case counts as if it had one.
    """

    name: ClassVar[str] = "logit_adjusted"
    tau: float = 1.0

    def build(self, counts: Sequence[int]) -> CaseLoss:
        """The loss; `tau` is at least 0, where it is the cross-entropy."""
        if not self.tau >= 0:
            raise UserError(f"{self.name}: tau should be at least 0, got {self.tau:g}.")
        present = torch.tensor(counts, dtype=torch.float32).clamp_min(1)
        return ShiftedCrossEntropy(self.class_weights(counts), self.tau * torch.log(present / present.sum()))


@final
@dataclass(frozen=True)
class Ldam(ClassLoss):
    """A margin for each class, larger for rare ones, with deferred re-weighting (Cao et al. 2019).

    The true class's logit is lowered by C / n^(1/4), where C makes the largest margin `max_margin`, then all
    are multiplied by `scale` (30 in the paper, whose logits are cosines; ours are not). The class weights
    apply from the share `drw_start` of the training on.
    """

    name: ClassVar[str] = "ldam"
    weights: str = "effective"
    max_margin: float = 0.5
    scale: float = 1.0
    drw_start: float = 0.8

    def build(self, counts: Sequence[int]) -> CaseLoss:
        """The loss; a class without a training case counts as if it had one."""
        if not (self.max_margin >= 0 and self.scale > 0):
            raise UserError(
                f"{self.name}: max_margin should be at least 0 and scale above 0, "
                f"got {self.max_margin:g} and {self.scale:g}."
            )
        if not 0 <= self.drw_start <= 1:
            raise UserError(f"{self.name}: drw_start should lie between 0 and 1, got {self.drw_start:g}.")
        raw = torch.tensor(counts, dtype=torch.float32).clamp_min(1).pow(-0.25)
        margins = self.max_margin * raw / raw.max()
        return MarginLoss(self.class_weights(counts), margins, self.scale, weights_from=self.drw_start)


@final
class ShiftedCrossEntropy(CaseLoss):
    """Cross-entropy of logits plus a constant per class."""

    def __init__(self, class_weights: Sequence[float], shift: Tensor, smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        self.smoothing = smoothing
        self.register_buffer("shift", shift, persistent=False)

    def losses(self, class_logits: Tensor, target: Tensor) -> Tensor:
        """(B,) losses before the class weights."""
        shifted = class_logits + self.get_buffer("shift")
        return F.cross_entropy(shifted, target, reduction="none", label_smoothing=self.smoothing)


@final
class FocalLoss(CaseLoss):
    """Cross-entropy of each case, times a power of the probability it lacks."""

    def __init__(self, class_weights: Sequence[float], gamma: float) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def losses(self, class_logits: Tensor, target: Tensor) -> Tensor:
        """(B,) losses before the class weights."""
        entropy = F.cross_entropy(class_logits, target, reduction="none")
        missed = -torch.expm1(-entropy)
        return missed.clamp_min(SMALLEST_MISS).pow(self.gamma) * entropy


@final
class MarginLoss(CaseLoss):
    """Cross-entropy after the true class's logit was lowered by its margin."""

    def __init__(
        self, class_weights: Sequence[float], margins: Tensor, scale: float, *, weights_from: float
    ) -> None:
        super().__init__(class_weights, weights_from=weights_from)
        self.scale = scale
        self.register_buffer("margins", margins, persistent=False)

    def losses(self, class_logits: Tensor, target: Tensor) -> Tensor:
        """(B,) losses before the class weights."""
        truth = F.one_hot(target, class_logits.shape[1]).to(class_logits.dtype)
        return F.cross_entropy(
            self.scale * (class_logits - truth * self.get_buffer("margins")), target, reduction="none"
        )


CLASS_LOSSES: Registry[ClassLoss] = Registry("class loss", CrossEntropy, Focal, Ldam, LogitAdjusted)
