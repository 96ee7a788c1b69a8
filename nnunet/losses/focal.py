"""The focal factor: voxels that are right already weigh less."""

from __future__ import annotations

from torch import Tensor

FOCAL_GAMMA = 2.0  # Lin et al. 2017, and NVIDIA's


def focused(losses: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma times a cross-entropy -log p of any shape, p the probability of the truth.

    From softmax and sigmoid alike, for p is exp(-loss). With gamma 0 it is the cross-entropy itself.
    """
    if gamma == 0:
        return losses
    # In this form nothing is lost where p is close to 1.
    return (-(-losses).expm1()) ** gamma * losses
