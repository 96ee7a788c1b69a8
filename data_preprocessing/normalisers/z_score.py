"""Zero mean and unit deviation per case and channel; the choice for MR and anything unknown."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from data_preprocessing.normalisers.base import SMALLEST_SCALE, Normaliser
from utils.contracts import IntensityStats


@final
@dataclass(frozen=True)
class ZScore(Normaliser):
    """Standardises a scan whose units mean nothing outside it."""

    name: ClassVar[str] = "z_score"

    uses_mask: bool = False
    """Take the statistics from the non-zero mask and leave zero outside it."""

    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """See `Normaliser.apply`; the dataset's statistics are not used."""
        if not self.uses_mask:
            return _standardise(image)
        result = np.zeros_like(image, dtype=np.float32)
        if mask.any():
            result[mask] = _standardise(image[mask])
        return result


def _standardise(values: np.ndarray) -> np.ndarray:
    # Statistics in float64: a constant scan then leaves exact zeros, not rounding noise divided by nothing.
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    result = values - np.float32(mean)
    result /= np.float32(max(std, SMALLEST_SCALE))
    return result
