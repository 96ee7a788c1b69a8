"""The contract of a class loss: class logits and targets in, one loss per case out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.contracts import NO_CLASS
from utils.errors import UserError

WEIGHTINGS = ("none", "inverse", "effective")


@dataclass(frozen=True)
class ClassLoss(ABC):
    """Options of one kind of class loss; `build` makes the module.

    `weights` balances the classes by a factor of a case's loss: none; inverse - by the inverse of the class's
    cases; effective - by the inverse of their effective number for `beta` (Cui et al. 2019). Both average 1
    over the training cases, so the weight of the class loss keeps its meaning; an absent class weighs 0.
    """

    name: ClassVar[str]

    weights: str = "none"
    beta: float = 0.9999

    def class_weights(self, counts: Sequence[int]) -> tuple[float, ...]:
        """One factor per class, for `counts` training cases of each; UserError for an option out of range."""
        if self.weights not in WEIGHTINGS:
            raise UserError(
                f"{self.name}: weights should be one of {', '.join(WEIGHTINGS)}, got {self.weights!r}."
            )
        if not 0 <= self.beta < 1:
            raise UserError(f"{self.name}: beta should be at least 0 and below 1, got {self.beta:g}.")
        if self.weights == "none":
            return (1.0,) * len(counts)
        if self.weights == "inverse":
            raw = [1 / count if count else 0.0 for count in counts]
        else:
            raw = [(1 - self.beta) / (1 - self.beta**count) if count else 0.0 for count in counts]
        total = sum(weight * count for weight, count in zip(raw, counts, strict=True))
        return tuple(weight * sum(counts) / total if total else 0.0 for weight in raw)

    @abstractmethod
    def build(self, counts: Sequence[int]) -> CaseLoss:
        """The loss for classes of which the training set has `counts` cases.

        UserError if an option is out of range.
        """


class CaseLoss(nn.Module, ABC):
    """Maps class logits and targets to one loss per case; weights of cases apply outside."""

    def __init__(self, class_weights: Sequence[float], *, weights_from: float = 0.0) -> None:
        super().__init__()
        self.weights_from = weights_from
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)

    def forward(self, class_logits: Tensor, class_target: Tensor, progress: float = 0.0) -> Tensor:
        """(B,) float32 losses, 0 for a case of unknown class (NO_CLASS).

        `class_logits` (B, K), `class_target` (B,); `progress` of the training, from 0 to 1: the class weights
        apply from `weights_from` on.
        """
        target = class_target.clamp_min(0)
        losses = self.losses(class_logits.float(), target)
        if progress >= self.weights_from:
            losses = losses * self.get_buffer("class_weights")[target]
        return torch.where(class_target == NO_CLASS, torch.zeros_like(losses), losses)

    @abstractmethod
    def losses(self, class_logits: Tensor, target: Tensor) -> Tensor:
        """(B,) losses before the class weights, of float32 logits (B, K) for targets (B,) from 0 to K - 1."""
