"""What every intensity normaliser offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from utils.contracts import IntensityStats

SMALLEST_SCALE = 1e-8  # a constant image has no spread; dividing by this keeps the result finite


@dataclass(frozen=True)
class Normaliser(ABC):
    """Maps the intensities of one channel of one case to the range a network learns from."""

    name: ClassVar[str]
    uses_dataset_statistics: ClassVar[bool] = (
        False  # whether a new training case changes the result of the others
    )

    @abstractmethod
    def apply(self, image: np.ndarray, mask: np.ndarray, stats: IntensityStats) -> np.ndarray:
        """The normalised float32 (D, H, W); finite wherever `image` is.

        `mask` is the boolean (D, H, W) of non-zero voxels, `stats` the foreground of the whole training set.
        """
