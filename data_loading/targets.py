"""Label maps -> what a network is trained against: the mask at every supervised resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIInterpType

from utils.contracts import Shape

LARGEST_LABEL = 32767  # labels are int16


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRule:
    """The shapes of the supervised outputs, finest first."""

    shapes: tuple[Shape, ...]


def targets_on_host(
    image: np.ndarray, label: np.ndarray, rule: TargetRule
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image (C, D, H, W) and label maps (L, D, H, W) -> the network's image and one target per resolution.

    Voxels outside the non-zero mask (-1) train as background, and coarse targets are nearest neighbours of
    the fine one (nnU-Net v2, steps 12 and 15).
    """
    fine = np.maximum(label[:1], 0)
    return image, [_shrunk(fine, shape) for shape in rule.shapes]


def _shrunk(label: np.ndarray, shape: Shape) -> np.ndarray:
    """Nearest neighbour with pixel centres aligned."""
    for axis, size in enumerate(shape, start=1):
        if (given := label.shape[axis]) != size:
            label = label.take((2 * np.arange(size) + 1) * given // (2 * size), axis=axis)
    return label


def targets_in_graph(image: DataNode, label: DataNode, rule: TargetRule) -> tuple[DataNode, list[Any]]:
    """The same as graph nodes."""
    fine = fn.cast(dali_math.clamp(label[:1], 0, LARGEST_LABEL), dtype=DALIDataType.INT16)
    shapes = [[float(size) for size in shape] for shape in rule.shapes]
    return image, [
        fine if level == 0 else fn.resize(fine, size=shape, interp_type=DALIInterpType.INTERP_NN)
        for level, shape in enumerate(shapes)
    ]
