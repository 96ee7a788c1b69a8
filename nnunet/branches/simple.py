"""A convolutional head on the last encoder stage: the usual multi-task baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from nnunet.blocks import convolution
from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_share


@final
@dataclass(frozen=True)
class Simple(Branch):
    """Two convolutions on the bottleneck, global average pooling, two linear layers."""

    name: ClassVar[str] = "simple"
    hidden: int = 256
    dropout: float = 0.5

    def build(self, site: BranchSite) -> BranchModule:
        """The head for the last of the site's stages."""
        check_at_least(self.name, "hidden", self.hidden, 1)
        check_share(self.name, "dropout", self.dropout)
        kernel = site.stages[-1].kernel
        return SimpleHead(
            nn.Sequential(
                convolution(site.stages[-1].channels, self.hidden, kernel, (1, 1, 1), site.style),
                nn.LeakyReLU(site.style.negative_slope),
                convolution(self.hidden, self.hidden, kernel, (1, 1, 1), site.style),
                nn.LeakyReLU(site.style.negative_slope),
            ),
            nn.Sequential(
                nn.Linear(self.hidden, self.hidden),
                nn.LeakyReLU(site.style.negative_slope),
                nn.Dropout(self.dropout),
                nn.Linear(self.hidden, site.num_classes),
            ),
            detach_features=self.detach_features,
        )


@final
class SimpleHead(BranchModule):
    """Convolutions, pooling, linear layers."""

    def __init__(self, convolutions: nn.Module, linear: nn.Module, *, detach_features: bool) -> None:
        super().__init__(detach_features=detach_features)
        self.convolutions = convolutions
        self.linear = linear

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K); neither label logits nor guide are used."""
        maps = self.convolutions(features[-1].float())
        return self.linear(maps.flatten(2).mean(dim=2))
