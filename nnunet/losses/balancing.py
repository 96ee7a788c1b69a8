"""Learned weights of tasks whose losses are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

LARGEST_LOG_VARIANCE = 4.0  # of a task
SMALLEST_WEIGHT, LARGEST_WEIGHT = math.exp(-LARGEST_LOG_VARIANCE), math.exp(LARGEST_LOG_VARIANCE)


@final
class TaskBalance(nn.Module):
    """Weights by homoscedastic uncertainty (Kendall et al. 2018): sum of exp(-s) * loss + s / 2 over tasks.

    s is the learned logarithm of a task's variance, `initial` the weights exp(-s) of the start. Losses have
    to be at least 0: where one can fall below, as a negative Dice does, the sum has no minimum; add the 1
    that it lacks. s is bounded, for otherwise a task that is solved gains weight without end. Keep weight
    decay from these parameters: it would pull all weights to 1.
    """

    def __init__(self, initial: Sequence[float]) -> None:
        super().__init__()
        if not all(SMALLEST_WEIGHT < weight < LARGEST_WEIGHT for weight in initial):
            raise ValueError(
                f"Initial weights should lie between {SMALLEST_WEIGHT:.3g} and {LARGEST_WEIGHT:.3g}, "
                f"got {initial}."
            )
        self.raw = nn.Parameter(
            torch.tensor([math.atanh(-math.log(weight) / LARGEST_LOG_VARIANCE) for weight in initial])
        )

    def weights(self) -> Tensor:
        """(T,) present factors of the losses, without a gradient."""
        return torch.exp(-self._log_variances()).detach()

    def forward(self, losses: Sequence[Tensor]) -> Tensor:
        """The scalar to minimise, for one scalar loss per task."""
        log_variances = self._log_variances()
        return (torch.exp(-log_variances) * torch.stack(tuple(losses)).float() + log_variances / 2).sum()

    def _log_variances(self) -> Tensor:
        return LARGEST_LOG_VARIANCE * torch.tanh(self.raw)
