"""Feature maps of many resolutions, of encoder and decoder, each read by itself and then combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, convolution, pointwise
from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_choice, check_share
from nnunet.branches.pooling import cells, check_pool, pool_to, pooled_channels
from nnunet.branches.scales import Scale, depth_of, scales_of
from utils.errors import UserError

COMBINATIONS = ("sum", "mix", "concat", "conv")


@final
@dataclass(frozen=True)
class MultiScale(Branch):
    """Every chosen map is pooled to `grid` cells per axis (1: global) by mean, max or both.

    `combine`: sum - one perceptron per map, its class logits added up; mix - the same, a linear layer
    weighs the logits instead; concat - the hidden units of all maps feed one linear layer; conv - the grids
    lie beside each other and pass a convolution. `arms` is encoder, decoder (from the bottleneck up) or both;
    `stages` chooses among their maps, unset all. `hidden` 0: half the channels of the map.
    """

    name: ClassVar[str] = "multi_scale"
    arms: str = "both"
    stages: tuple[int, ...] = ()
    pool: str = "both"
    grid: tuple[int, ...] = (1,)
    combine: str = "concat"
    hidden: int = 64
    dropout: float = 0.3

    @property
    def reads_decoder(self) -> bool:
        """Unless the encoder alone is read."""
        return self.arms != "encoder"

    def depth(self, num_stages: int) -> int:
        """Down to the last of its stages; without the encoder's arm, to the bottleneck or none."""
        return depth_of(self.arms, self.stages, num_stages)

    def build(self, site: BranchSite) -> BranchModule:
        """The head for the chosen maps of the site's stages."""
        check_pool(self.name, self.pool)
        check_choice(self.name, "combine", self.combine, COMBINATIONS)
        check_at_least(self.name, "hidden", self.hidden, 0)
        check_share(self.name, "dropout", self.dropout)
        size = cells(self.name, self.grid, site.style.dims)
        if self.combine == "conv" and set(size) == {1}:
            raise UserError(f"{self.name}: combine=conv needs a grid of more than one cell, as in grid=4.")
        scales = scales_of(self.name, self.arms, self.stages, site.stages)
        readers = [self._reader(scale, size, site.num_classes, site.style) for scale in scales]
        widths = [self._units(scale) for scale in scales]
        return MultiScaleHead(
            _Pooling(tuple(scale.index for scale in scales), size, self.pool),
            readers,
            self._combination(widths, site.num_classes, site.style),
            detach_features=self.detach_features,
        )

    def _units(self, scale: Scale) -> int:
        return self.hidden or max(scale.channels // 2, 1)

    def _reader(self, scale: Scale, size: tuple[int, ...], num_classes: int, style: BlockStyle) -> nn.Module:
        """What turns one pooled map into hidden maps (conv), hidden units (concat) or class logits."""
        channels, units = pooled_channels(scale.channels, self.pool), self._units(scale)
        activation = nn.LeakyReLU(style.negative_slope)
        if self.combine == "conv":
            return nn.Sequential(pointwise(channels, units, style), activation)
        width = channels * torch.Size(size).numel()
        layers = [nn.Flatten(), nn.Linear(width, units), activation, nn.Dropout(self.dropout)]
        if self.combine != "concat":
            layers.append(nn.Linear(units, num_classes))
        return nn.Sequential(*layers)

    def _combination(self, widths: Sequence[int], num_classes: int, style: BlockStyle) -> nn.Module:
        """What turns the answers of all readers, side by side along axis 1, into class logits."""
        if self.combine == "sum":
            return _Sum(num_classes)
        if self.combine == "mix":
            return nn.Linear(len(widths) * num_classes, num_classes)
        if self.combine == "concat":
            return nn.Linear(sum(widths), num_classes)
        units = 2 * max(widths)
        return nn.Sequential(
            convolution(sum(widths), units, (3, 3, 3), (1, 1, 1), style),
            nn.LeakyReLU(style.negative_slope),
            nn.AdaptiveAvgPool3d(1) if style.dims == 3 else nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(units, units),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(units, num_classes),
        )


@dataclass(frozen=True, slots=True)
class _Pooling:
    """Which maps are read and how they are pooled."""

    indices: tuple[int, ...]
    size: tuple[int, ...]
    pool: str


@final
class _Sum(nn.Module):
    """Adds class logits that lie side by side."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, answers: Tensor) -> Tensor:
        """(B, K) from (B, S * K)."""
        return answers.unflatten(1, (-1, self.num_classes)).sum(dim=1)


@final
class MultiScaleHead(BranchModule):
    """One reader per map, then the combination of their answers."""

    def __init__(
        self,
        pooling: _Pooling,
        readers: Sequence[nn.Module],
        combination: nn.Module,
        *,
        detach_features: bool,
    ) -> None:
        super().__init__(detach_features=detach_features)
        self.pooling = pooling
        self.readers = nn.ModuleList(readers)
        self.combination = combination

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K); neither label logits nor guide are used."""
        answers = [
            reader(pool_to(features[index], self.pooling.size, self.pooling.pool))
            for index, reader in zip(self.pooling.indices, self.readers, strict=True)
        ]
        return self.combination(torch.cat(answers, dim=1))
