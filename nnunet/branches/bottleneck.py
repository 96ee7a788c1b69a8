"""Global pooling of the last encoder stage and a linear layer: the smallest head there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_share
from nnunet.branches.pooling import check_pool, pool_to, pooled_channels


@final
@dataclass(frozen=True)
class Bottleneck(Branch):
    """Pooling (mean, max or both), then one linear layer, or two with `hidden` units between them.

    Instance normalisation has levelled the means of the bottleneck: a baseline to compare with.
    """

    name: ClassVar[str] = "bottleneck"
    pool: str = "mean"
    layer_norm: bool = False
    hidden: int = 0
    dropout: float = 0.0

    def build(self, site: BranchSite) -> BranchModule:
        """The head for the last of the site's stages."""
        check_pool(self.name, self.pool)
        check_at_least(self.name, "hidden", self.hidden, 0)
        check_share(self.name, "dropout", self.dropout)
        width = pooled_channels(site.stages[-1].channels, self.pool)
        layers: list[nn.Module] = [nn.LayerNorm(width)] if self.layer_norm else []
        if self.hidden:
            layers += [nn.Linear(width, self.hidden), nn.ReLU()]
        layers += [nn.Dropout(self.dropout), nn.Linear(self.hidden or width, site.num_classes)]
        return BottleneckHead(
            nn.Sequential(*layers),
            self.pool,
            detach_features=self.detach_features,
        )


@final
class BottleneckHead(BranchModule):
    """Pooling, linear layers."""

    def __init__(self, linear: nn.Module, pool: str, *, detach_features: bool) -> None:
        super().__init__(detach_features=detach_features)
        self.linear = linear
        self.pool = pool

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K); neither label logits nor guide are used."""
        maps = features[-1]
        return self.linear(pool_to(maps, (1,) * (maps.ndim - 2), self.pool).flatten(1))
