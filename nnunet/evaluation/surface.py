"""Distances between the surfaces of two masks in millimetres: surface Dice, HD95, mean distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from utils.contracts import Spacing

HAUSDORFF_PERCENTILE = 95.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurfaceDistances:
    """From every surface voxel of one mask to the other's surface, in millimetres; (N,) and (M,) float64.

    Infinite where only one of the two masks is empty; no entries where both are.
    """

    to_predicted_mm: np.ndarray
    to_reference_mm: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceScore:
    """One structure of one case."""

    surface_dice: float
    hd95_mm: float
    mean_distance_mm: float


def surface_distances(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between two surfaces, both ways; `truth` and `predicted` are boolean (X, Y, Z).

    A surface voxel is one of the mask that has a face on the outside, or on the edge of the volume. An axis
    of one voxel has no surface: a volume of one slice is measured in its plane, so its borders are lines.
    """
    truth, predicted, spacing = _in_plane(truth, predicted, spacing_mm)
    if not truth.any() or not predicted.any():
        return SurfaceDistances(
            to_predicted_mm=np.full(int(_border(truth).sum()), np.inf),
            to_reference_mm=np.full(int(_border(predicted).sum()), np.inf),
        )
    box = find_objects((truth | predicted).astype(np.uint8))[0]  # both masks lie inside: smaller is faster
    borders = _border(truth[box]), _border(predicted[box])
    to_truth, to_predicted = (_distance_to(border, spacing) for border in borders)
    return SurfaceDistances(to_predicted_mm=to_predicted[borders[0]], to_reference_mm=to_truth[borders[1]])


def surface_score(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing, *, tolerance_mm: float
) -> SurfaceScore:
    """All numbers of one structure from two boolean (X, Y, Z) masks.

    Both empty: surface Dice 1, distances NaN. Only one empty: surface Dice 0, distances infinite.
    """
    distances = surface_distances(truth, predicted, spacing_mm)
    return SurfaceScore(
        surface_dice=surface_dice(distances, tolerance_mm=tolerance_mm),
        hd95_mm=hausdorff_95_mm(distances),
        mean_distance_mm=mean_distance_mm(distances),
    )


def surface_dice(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """The share of both surfaces, pooled, within `tolerance_mm` of the other (Nikolov et al. 2018)."""
    both = np.concatenate([distances.to_predicted_mm, distances.to_reference_mm])
    return float((both <= tolerance_mm).mean()) if both.size else 1.0


def hausdorff_95_mm(distances: SurfaceDistances) -> float:
    """The larger of the two directions' 95th percentiles; NaN without any surface."""
    directed = [
        # A percentile between infinities would be NaN.
        np.inf if np.isinf(way).any() else float(np.percentile(way, HAUSDORFF_PERCENTILE))
        for way in (distances.to_predicted_mm, distances.to_reference_mm)
        if way.size
    ]
    return max(directed, default=float("nan"))


def mean_distance_mm(distances: SurfaceDistances) -> float:
    """The mean over all surface voxels of both masks (ASSD); NaN without any surface."""
    both = np.concatenate([distances.to_predicted_mm, distances.to_reference_mm])
    return float(both.mean()) if both.size else float("nan")


def _in_plane(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Both masks and their spacing without the axes of one voxel; a volume of one voxel keeps one axis."""
    # The axes of the whole volume: a mask in one slice of several is a sheet that has two sides.
    long = [axis for axis, size in enumerate(truth.shape) if size > 1] or [0]
    shape = tuple(truth.shape[axis] for axis in long)
    return truth.reshape(shape), predicted.reshape(shape), tuple(spacing_mm[axis] for axis in long)


def _border(mask: np.ndarray) -> np.ndarray:
    return mask & ~np.asarray(binary_erosion(mask), bool)


def _distance_to(border: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    return np.asarray(distance_transform_edt(~border, sampling=spacing_mm))
