"""Factors about 1, as brightness, contrast and gamma draw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from data_loading.augmentations.base import check_low_high


@final
@dataclass(frozen=True)
class FactorRange:
    """One factor per channel: half the time uniform in low..1, half in 1..high (batchgeneratorsv2 0.3).

    With `same` one factor for all channels, uniform in low..high (NVIDIA's nnU-Net). A range that does not
    hold 1 is drawn from uniformly. `owner` is named in the UserError about a range that is none.
    """

    owner: str
    low: float
    high: float
    same: bool = False

    def __post_init__(self) -> None:
        check_low_high(self.owner, self.low, self.high)

    def draw(self, random: np.random.Generator, num_channels: int) -> np.ndarray:
        """Factors float64 (num_channels,)."""
        if self.same or not self.low < 1.0 < self.high:
            drawn = random.uniform(self.low, self.high, 1 if self.same else num_channels)
            return np.broadcast_to(drawn, num_channels)
        is_below, place = random.random((2, num_channels))
        return np.where(is_below < 0.5, self.low + place * (1.0 - self.low), 1.0 + place * (self.high - 1.0))
