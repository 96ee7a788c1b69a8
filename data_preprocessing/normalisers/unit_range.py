"""The range of each case and channel mapped to 0..1."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from data_preprocessing.normalisers.base import SMALLEST_SCALE, Normaliser
from utils.contracts import IntensityStats


@final
@dataclass(frozen=True)
class UnitRange(Normaliser):
    """The darkest voxel becomes 0, the brightest 1; a constant scan becomes 0."""

    name: ClassVar[str] = "unit_range"

    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """See `Normaliser.apply`; neither mask nor statistics are used."""
        low, high = image.min(), image.max()
        return (image - low) / np.float32(max(float(high) - float(low), SMALLEST_SCALE))
