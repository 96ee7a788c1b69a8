"""Fingerprint of a training set: shapes, spacings and foreground intensities, equal to those of nnU-Net.

Foreground intensities are a random draw *with* replacement, the same number from every case, so that a case
with a large organ does not outweigh the others. The draw is kept as a tally (value, how often), which is
exact and orders of magnitude smaller than the 100 million numbers themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.contracts import Dataset, Fingerprint, IntensityStats, Shape, Spacing
from utils.errors import DatasetError

FOREGROUND_BUDGET = 100_000_000  # draws over the whole dataset (nnU-Net)
DRAW_SEED = 1234  # restarted for every case, so that the order of the cases does not matter (nnU-Net)
DRAWS_AT_ONCE = 8_000_000  # bounds the memory of the indices; the stream of numbers is the same
LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntensityTally:
    """How often each intensity was drawn: `values` (M,) float32 ascending and unique, `counts` (M,) int64."""

    values: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseMeasurement:
    """What one training case contributes; `foreground` has one tally per channel, empty without foreground.

    `shape` (after the crop to non-zero) and `spacing_mm` are (z, y, x) of the RAS-oriented volume.
    `relative_size` is the share of the voxels that the crop left.
    """

    case_id: str
    shape: Shape
    spacing_mm: Spacing
    relative_size: float
    foreground: tuple[IntensityTally, ...]


def samples_per_case(num_cases: int, *, budget: int = FOREGROUND_BUDGET) -> int:
    """Foreground draws of each case when `budget` draws are shared equally; at least one."""
    return max(budget // max(num_cases, 1), 1)


def measure_case(
    image: np.ndarray,
    label: np.ndarray,
    *,
    case_id: str,
    spacing_mm: Spacing,
    relative_size: float,
    num_samples: int,
) -> CaseMeasurement:
    """Measure `image` (C, D, H, W) and `label` (D, H, W), both cropped to non-zero, RAS, (z, y, x).

    Foreground is every voxel with a label above 0. The caller sets voxels of the ignore label to 0 first:
    they were never annotated, so they are not foreground (nnU-Net's documentation agrees, its code counts
    them). The draw equals nnU-Net's number by number for files stored in RAS; others list their voxels in
    another order.
    """
    if image.shape[1:] != label.shape:
        raise DatasetError(
            f"Case {case_id}: image has shape {image.shape[1:]} but label has {label.shape} (z, y, x). "
            "Both must come from the same grid; resample the label to the image first."
        )
    mask = label > 0
    draw = np.random.RandomState(DRAW_SEED)  # noqa: NPY002 - nnU-Net's legacy generator, for equal statistics
    depth, height, width = label.shape
    return CaseMeasurement(
        case_id=case_id,
        shape=(depth, height, width),
        spacing_mm=spacing_mm,
        relative_size=relative_size,
        foreground=tuple(_tally(channel[mask], num_samples, draw) for channel in image),
    )


def summarise(dataset: Dataset, measurements: Sequence[CaseMeasurement]) -> Fingerprint:
    """The fingerprint of `dataset` from one measurement per training case, in the order of `measurements`."""
    if not measurements:
        raise DatasetError(f"Dataset {dataset.name} has no training case, so it has no fingerprint.")
    intensity = tuple(
        _statistics([measured.foreground[channel] for measured in measurements], dataset, name)
        for channel, name in enumerate(dataset.channel_names)
    )
    return Fingerprint(
        dataset=dataset.name,
        case_ids=tuple(measured.case_id for measured in measurements),
        shapes=tuple(measured.shape for measured in measurements),
        spacings_mm=tuple(measured.spacing_mm for measured in measurements),
        intensity=intensity,
        relative_sizes=tuple(measured.relative_size for measured in measurements),
        channel_names=dataset.channel_names,
        label_names=dataset.label_names,
        class_names=dataset.class_names,
    )


def _tally(
    intensities: np.ndarray,
    num_samples: int,
    draw: np.random.RandomState,  # noqa: NPY002
) -> IntensityTally:
    """Draw `num_samples` of `intensities` (n,) with replacement; nothing where n is 0."""
    if intensities.size == 0:
        return IntensityTally(values=np.empty(0, np.float32), counts=np.empty(0, np.int64))
    times = np.zeros(intensities.size, dtype=np.int64)
    for start in range(0, num_samples, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, num_samples - start)
        times += np.bincount(draw.randint(0, intensities.size, size), minlength=intensities.size)
    drawn = times > 0
    return _merged(intensities[drawn].astype(np.float32), times[drawn])


def _merged(values: np.ndarray, counts: np.ndarray) -> IntensityTally:
    unique, where = np.unique(values, return_inverse=True)
    total = np.zeros(unique.size, dtype=np.int64)
    np.add.at(total, where, counts)
    return IntensityTally(values=unique, counts=total)


def _statistics(tallies: Sequence[IntensityTally], dataset: Dataset, channel: str) -> IntensityStats:
    tally = _merged(
        np.concatenate([item.values for item in tallies]), np.concatenate([item.counts for item in tallies])
    )
    if tally.values.size == 0:
        raise DatasetError(
            f"Dataset {dataset.name}: none of the {len(tallies)} training labels has a voxel above 0, so "
            f"channel {channel!r} has no foreground intensities. Check that the label files are not empty."
        )
    values = tally.values.astype(np.float64)
    mean = float(np.average(values, weights=tally.counts))
    variance = float(np.average((values - mean) ** 2, weights=tally.counts))
    return IntensityStats(
        mean=mean,
        std=variance**0.5,
        median=_percentile(tally, 50.0),
        min=float(values[0]),
        max=float(values[-1]),
        low=_percentile(tally, LOW_PERCENT),
        high=_percentile(tally, HIGH_PERCENT),
    )


def _percentile(tally: IntensityTally, percent: float) -> float:
    """As `np.percentile` of the drawn numbers: linear between the two nearest ranks."""
    last_rank = np.cumsum(tally.counts)
    position = percent / 100.0 * (int(last_rank[-1]) - 1)
    below = int(position)
    ranks = np.minimum([below, below + 1], last_rank[-1] - 1)
    lower, upper = (float(value) for value in tally.values[np.searchsorted(last_rank, ranks, side="right")])
    return lower + (upper - lower) * (position - below)
