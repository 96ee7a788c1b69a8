"""The contract of a branch: features and label logits in, class logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from nnunet.blocks import BlockStyle
from utils.contracts import Stage


@dataclass(frozen=True)
class Branch(ABC):
    """Options of one kind of branch; `build` makes the module.

    The module maps (features, finest label logits) to class logits (B, K), computed in float32 whatever
    autocast says, without batch normalisation: batches are small and labels few.
    """

    name: ClassVar[str]

    @abstractmethod
    def build(self, stages: Sequence[Stage], num_classes: int, style: BlockStyle) -> nn.Module:
        """The branch for `stages`; every parameter exists when it returns."""
