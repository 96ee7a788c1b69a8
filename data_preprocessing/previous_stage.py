"""A cascade's previous stage: its plan's successor, and its answer on the grid of the next stage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data_preprocessing.restore import cropped_label
from utils.contracts import Footprint, Plan
from utils.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor

CONFIGURATION = "3d_cascade_fullres"
SHARED = ("native_shape", "orientation", "axis_order", "oriented_shape", "crop_start", "crop_stop")


def cascade_plan(plan: Plan) -> Plan:
    """The full-resolution `plan` with the labels of a previous stage as further input channels.

    Nothing else changes (nnU-Net v2): grid, patch, stages and batch are those of full resolution.
    """
    return replace(plan, configuration=CONFIGURATION, prior_labels=plan.num_labels - 1)


def prior_label(
    scores: np.ndarray | Tensor,
    coarse: Footprint,
    fine: Footprint,
    *,
    regions_class_order: tuple[int, ...] = (),
) -> np.ndarray:
    """The label map, int16 (1, D, H, W), of scores (L, d, h, w) on the coarse grid, on the fine planned grid.

    Scores are interpolated, then the largest wins, as on the way back to the scanner's grid; padding is
    background. DatasetError where the two grids are not those of one scan.
    """
    if changed := [name for name in SHARED if getattr(coarse, name) != getattr(fine, name)]:
        raise DatasetError(
            f"The previous stage was prepared from another scan, or cropped otherwise ({', '.join(changed)})."
            " Run preprocess.py again for both configurations."
        )
    depth, height, width = (
        spacing * old / new
        for spacing, old, new in zip(
            fine.oriented_spacing_mm, fine.cropped_shape, fine.planned_shape, strict=True
        )
    )
    # To the fine grid as if it were the scanner's.
    here = replace(coarse, cropped_shape=fine.planned_shape, oriented_spacing_mm=(depth, height, width))
    label = cropped_label(scores, here, regions_class_order=regions_class_order)
    padding = list(zip(fine.padding_before, fine.padding_after, strict=True))
    return np.pad(label, padding).astype(np.int16)[np.newaxis]


def with_prior(image: np.ndarray, prior: np.ndarray, prior_labels: int) -> np.ndarray:
    """Image (C, D, H, W) and the previous stage's labels (1, D, H, W) -> float32 (C + P, D, H, W).

    Channel C + p - 1 is 1 where the previous stage saw label p, as in training.
    """
    seen = [prior[0] == label for label in range(1, prior_labels + 1)]
    return np.concatenate([image, *(mask[np.newaxis] for mask in seen)]).astype(np.float32)
