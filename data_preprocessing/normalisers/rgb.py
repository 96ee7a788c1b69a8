"""8-bit colour channels mapped to 0..1."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from data_preprocessing.normalisers.base import Normaliser
from utils.contracts import IntensityStats

BRIGHTEST = 255.0  # largest value of an 8-bit channel


@final
@dataclass(frozen=True)
class Rgb(Normaliser):
    """Divides by 255, the same for every picture."""

    name: ClassVar[str] = "rgb"

    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """See `Normaliser.apply`; neither mask nor statistics are used."""
        return image / np.float32(BRIGHTEST)
