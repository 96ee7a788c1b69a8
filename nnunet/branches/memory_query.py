"""Learned queries that read tokens of several resolutions by attention: a memory transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from nnunet.branches.base import Branch, BranchModule, BranchSite, check_at_least, check_share
from nnunet.branches.pooling import cells, pool_to
from nnunet.branches.scales import Scale, depth_of, scales_of
from utils.errors import UserError

EMBEDDING_STD = 0.02  # of learned vectors at the start, as usual for transformers (Devlin et al. 2019)
WIDENING = 4  # hidden units of the feed-forward part, per channel (Vaswani et al. 2017)


@final
@dataclass(frozen=True)
class MemoryQuery(Branch):
    """The idea of the dual-path memory transformer (Zhou et al. 2023; Cao et al. 2023), sized for few cases.

    The maps of `stages` in `arms` are averaged to `grid` cells, projected to `width` channels and marked with
    their place and their scale. `queries` learned vectors read these tokens and each other in `blocks`
    blocks; their mean is classified. Normalisation stands before attention, which keeps training stable.
    """

    name: ClassVar[str] = "memory_query"
    arms: str = "both"
    stages: tuple[int, ...] = (2, 4)
    grid: tuple[int, ...] = (4,)
    queries: int = 16
    width: int = 128
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.1

    @property
    def reads_decoder(self) -> bool:
        """Unless the encoder alone is read."""
        return self.arms != "encoder"

    def depth(self, num_stages: int) -> int:
        """Down to the last of its stages; without the encoder's arm, to the bottleneck or none."""
        return depth_of(self.arms, self.stages, num_stages)

    def build(self, site: BranchSite) -> BranchModule:
        """The head for the chosen maps of the site's stages."""
        for option in ("queries", "width", "blocks", "heads"):
            check_at_least(self.name, option, getattr(self, option), 1)
        check_share(self.name, "dropout", self.dropout)
        if self.width % self.heads:
            raise UserError(
                f"{self.name}: width should be a multiple of heads, got {self.width} and {self.heads}."
            )
        size = cells(self.name, self.grid, site.style.dims)
        scales = scales_of(self.name, self.arms, self.stages, site.stages)
        return MemoryQueryHead(
            Tokens(scales, size, self.width),
            nn.Parameter(torch.randn(self.queries, self.width) * EMBEDDING_STD),
            [MemoryBlock(self.width, self.heads, self.dropout) for _ in range(self.blocks)],
            nn.Sequential(
                nn.LayerNorm(self.width), nn.Dropout(self.dropout), nn.Linear(self.width, site.num_classes)
            ),
            detach_features=self.detach_features,
        )


@final
class Tokens(nn.Module):
    """Feature maps -> (B, T, width): one token per cell and scale, all scales behind each other."""

    def __init__(self, scales: Sequence[Scale], size: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.indices = tuple(scale.index for scale in scales)
        self.size = size
        self.projections = nn.ModuleList(nn.Linear(scale.channels, width) for scale in scales)
        self.places = nn.Parameter(torch.randn(torch.Size(size).numel(), width) * EMBEDDING_STD)
        self.scales = nn.Parameter(torch.randn(len(scales), 1, width) * EMBEDDING_STD)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Normalised tokens."""
        tokens = [
            projection(pool_to(features[index], self.size, "mean").flatten(2).transpose(1, 2))
            + self.places
            + mark
            for index, projection, mark in zip(self.indices, self.projections, self.scales, strict=True)
        ]
        return self.norm(torch.cat(tokens, dim=1))


@final
class MemoryBlock(nn.Module):
    """The memory reads tokens and itself in one softmax, then a feed-forward part."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, WIDENING * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(WIDENING * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """The memory (B, Q, width) after it has read `tokens` (B, T, width)."""
        asking = self.norm(memory)
        known = torch.cat([tokens, asking], dim=1)
        memory = memory + self.attention(asking, known, known, need_weights=False)[0]
        return memory + self.feed_forward(memory)


@final
class MemoryQueryHead(BranchModule):
    """Tokens, the memory that reads them, and a linear layer on its mean."""

    def __init__(
        self,
        tokens: nn.Module,
        memory: nn.Parameter,
        blocks: Sequence[nn.Module],
        linear: nn.Module,
        *,
        detach_features: bool,
    ) -> None:
        super().__init__(detach_features=detach_features)
        self.tokens = tokens
        self.memory = memory
        self.blocks = nn.ModuleList(blocks)
        self.linear = linear

    def class_logits(
        self, features: tuple[Tensor, ...], label_logits: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Class logits (B, K); neither label logits nor guide are used."""
        tokens = self.tokens(features)
        memory = self.memory.expand(tokens.shape[0], -1, -1)
        for block in self.blocks:
            memory = block(memory, tokens)
        return self.linear(memory.mean(dim=1))
