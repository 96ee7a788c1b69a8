"""Intensities left as they are, for channels that are already on a common scale."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from data_preprocessing.normalisers.base import Normaliser
from utils.contracts import IntensityStats


@final
@dataclass(frozen=True)
class Identity(Normaliser):
    """Changes nothing but the type, which becomes float32."""

    name: ClassVar[str] = "identity"

    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """See `Normaliser.apply`; neither mask nor statistics are used."""
        return image.astype(np.float32, copy=True)
