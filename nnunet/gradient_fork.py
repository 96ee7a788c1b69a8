"""Two readers of the same maps, and how much the second may move what both of them read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function

from nnunet.ranks import ranks_talk
from utils.errors import UserError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientFork:
    """Maps for the segmentation, and the same maps for the class, whose gradient is brought to a norm.

    The norm is `share` of the segmentation's, over all maps and ranks together; with `at_most` a smaller
    gradient stays as it is. So two tasks are balanced where they meet, whatever the weight of a loss (in the
    manner of GradNorm, Chen et al. 2018, nothing learned). What reaches the maps through the decoder is the
    segmentation's.
    """

    share: float
    at_most: bool = False

    def __call__(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(The maps for the segmentation, the same for the class); without a gradient nothing is copied."""
        if not torch.is_grad_enabled():
            return features, features
        both: Any = ForkedMaps.apply(self.share, self.at_most, *features)
        return both[: len(features)], both[len(features) :]


def gradient_fork(owner: str, option: str, share: float, *, at_most: bool = False) -> GradientFork | None:
    """The fork for an option of `owner`; 0: none, gradients as they come. UserError below 0."""
    if not share >= 0:
        raise UserError(f"{owner}: {option} should be at least 0, got {share:g}.")
    return GradientFork(share=share, at_most=at_most) if share else None


@final
class ForkedMaps(Function):
    """The same maps twice; on the way back the second copy's gradient is scaled by the first one's norm.

    Only the ratio of two norms enters, so the loss scale of float16 cancels, and an overflow stays visible to
    the scaler. Where either gradient is zero nothing is scaled.
    """

    @staticmethod
    def forward(ctx: Any, share: float, at_most: bool, *features: Tensor) -> tuple[Tensor, ...]:  # noqa: FBT001 - torch passes by position
        """The maps for the segmentation, then the same for the class."""
        ctx.share, ctx.at_most = share, at_most
        ctx.set_materialize_grads(False)  # a map that nobody reads costs nothing
        copies = (*features, *features)
        return tuple(maps.view_as(maps) for maps in copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The sum of both gradients for each map."""
        norms = _norms(gradients)
        if norms is None:
            return None, None, *[one if other is None else other for one, other in _pairs(gradients)]
        wanted, present = norms
        ratio = ctx.share * wanted / present
        if ctx.at_most:
            ratio = ratio.clamp_max(1.0)
        factor = torch.where((wanted == 0) | (present == 0), torch.ones_like(ratio), ratio)
        return None, None, *[_sum(one, other, factor) for one, other in _pairs(gradients)]


def _pairs(gradients: Sequence[Tensor | None]) -> list[tuple[Tensor | None, Tensor | None]]:
    half = len(gradients) // 2
    return list(zip(gradients[:half], gradients[half:], strict=True))


def _sum(one: Tensor | None, other: Tensor | None, factor: Tensor) -> Tensor | None:
    if other is None:
        return one
    scaled = (factor * other.float()).to(other.dtype)
    return scaled if one is None else one + scaled


def _norms(gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | None:
    """The Euclidean norms of both halves, of all ranks together, in float32; None: one half is absent.

    Of all ranks, so that several processes end with one process's weights. Absent is what the network never
    reads: that is the same on every rank, and none waits for another in vain.
    """
    half = len(gradients) // 2
    norms = [
        # No copy in float32: a finest map may take half a gigabyte.
        [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in part if gradient is not None]
        for part in (gradients[:half], gradients[half:])
    ]
    if not all(norms):
        return None
    squares = torch.stack([torch.stack(part).double().square().sum() for part in norms])
    if ranks_talk():
        torch.distributed.all_reduce(squares)
    segmentation, classification = squares.sqrt().float()
    return segmentation, classification
