"""The contract of a branch: features and label logits in, class logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle
from nnunet.gradient_fork import GradientFork, gradient_fork
from nnunet.lesion import Anatomy
from utils.contracts import Stage
from utils.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSite:
    """What a branch is built for: the network's stages, and what it is to tell apart where."""

    stages: tuple[Stage, ...]
    image_channels: int
    num_classes: int
    style: BlockStyle
    anatomy: Anatomy


@dataclass(frozen=True)
class Branch(ABC):
    """Options of one kind of branch; `build` makes the module.

    With `detach_features` the class loss trains the branch alone: the network below it is only read.
    `gradient_limit` above 0: where the class gradient enters the encoder, or a map of the decoder, its norm
    is at most that share of the segmentation's, whatever the weight of the loss.
    """

    name: ClassVar[str]
    reads_target: ClassVar[bool] = False  # in training it can use the target as a guide
    reads_image: ClassVar[bool] = False  # the image is to follow all other maps

    detach_features: bool = False
    gradient_limit: float = 0.25

    def fork(self) -> GradientFork | None:
        """How the class gradient enters the network; UserError for a negative limit."""
        return gradient_fork(self.name, "gradient_limit", self.gradient_limit, at_most=True)

    @property
    def reads_decoder(self) -> bool:
        """Whether the maps of the decoder are to follow those of the encoder."""
        return False

    def depth(self, num_stages: int) -> int:
        """How many of the encoder's stages it needs, from the finest down."""
        return num_stages

    @abstractmethod
    def build(self, site: BranchSite) -> BranchModule:
        """The branch for `site`; every parameter exists when it returns.

        UserError if an option has no meaning, or none for this network.
        """


class BranchModule(nn.Module, ABC):
    """Maps feature maps to class logits, in float32 whatever autocast says, without batch normalisation.

    Batches are small and labels few: statistics of a batch say nothing, and attention in half precision
    diverges.
    """

    def __init__(self, *, detach_features: bool) -> None:
        super().__init__()
        self.detach_features = detach_features

    def forward(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        """Class logits (B, K) float32.

        `features` holds the encoder's maps, finest first, and for a branch that reads the decoder then the
        decoder's, finest first: one fewer, with the encoder's channels; for a branch that reads the image,
        the image (B, C, *spatial) at the end. `label_logits` are the finest. `guide`, used in training alone
        and by few branches, is the finest target of the batch.
        """
        if self.detach_features:
            features = tuple(maps.detach() for maps in features)
        with torch.autocast(label_logits.device.type, enabled=False):
            return self.class_logits(features, label_logits, guide if self.training else None)

    @abstractmethod
    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K) float32 from maps of any floating type; autocast is off."""


def present(numbers: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """The stages that `numbers` name, finest first; all if none is named, the last if the network has none.

    A negative number counts from the last stage. Stages that a shallow network lacks are left out.
    """
    if not numbers:
        return tuple(range(num_stages))
    counted = {number + num_stages if number < 0 else number for number in numbers}
    return tuple(sorted(counted & set(range(num_stages)))) or (num_stages - 1,)


def check_choice(owner: str, option: str, value: str, choices: Sequence[str]) -> None:
    """UserError in the name of `owner` where `value` is none of `choices`."""
    if value not in choices:
        raise UserError(f"{owner}: {option} should be one of {', '.join(choices)}, got {value!r}.")


def check_at_least(owner: str, option: str, value: float, least: float) -> None:
    """UserError in the name of `owner` where `value` lies below `least` or is not a number."""
    if not value >= least:
        raise UserError(f"{owner}: {option} should be at least {least:g}, got {value:g}.")


def check_share(owner: str, option: str, value: float) -> None:
    """UserError in the name of `owner` where `value` does not lie between 0 and 1."""
    if not 0 <= value <= 1:
        raise UserError(f"{owner}: {option} should lie between 0 and 1, got {value:g}.")
