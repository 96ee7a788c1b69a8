"""CT: clip to the foreground window of the dataset, then standardise with its mean and deviation."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from data_preprocessing.normalisers.base import SMALLEST_SCALE, Normaliser
from utils.contracts import IntensityStats


@final
@dataclass(frozen=True)
class CtWindow(Normaliser):
    """Hounsfield units mean the same in every scan: one window serves the dataset (Isensee et al. 2021)."""

    name: ClassVar[str] = "ct_window"
    uses_dataset_statistics: ClassVar[bool] = True

    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """See `Normaliser.apply`; the mask is not used."""
        window = np.clip(image, np.float32(stats.low), np.float32(stats.high))
        window -= np.float32(stats.mean)
        window /= np.float32(max(stats.std, SMALLEST_SCALE))
        return window
