"""A prediction on the planned grid back on the scanner's grid: the inverse of `prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_preprocessing.geometry import Box, as_shape, to_file_axes, uncrop
from data_preprocessing.resampling import coarse_axis, resample_probability
from utils.contracts import HIGHEST_LABEL, Footprint

if TYPE_CHECKING:
    from torch import Tensor

REGION_THRESHOLD = 0.5  # probability above which a voxel belongs to a region
ROUNDING = 1.05  # spacings closer than this ratio differ only by the rounding of the shapes


def restore_label(
    scores: np.ndarray | Tensor, footprint: Footprint, *, regions_class_order: tuple[int, ...] = ()
) -> np.ndarray:
    """The label map, uint8 (X, Y, Z) in the axes of the file, from scores on the planned grid.

    They are as in `cropped_label`; what was cropped away is background.
    """
    label = cropped_label(scores, footprint, regions_class_order=regions_class_order)
    return _place(label, footprint, outside=0)


def cropped_label(
    scores: np.ndarray | Tensor, footprint: Footprint, *, regions_class_order: tuple[int, ...] = ()
) -> np.ndarray:
    """The label map, uint8 (D, H, W), on the grid before resampling: cropped, in planned axes.

    Scores (L, D, H, W) are resampled one channel at a time, so the full-resolution volume is held twice, not
    L times. The largest score wins (the lower label on a tie; logits and probabilities both serve). With
    `regions_class_order` the scores are probabilities, one channel per region, and a region writes its label
    of that order wherever it has more than one half, over those before it (nnU-Net v2).
    """
    values = regions_class_order or tuple(range(scores.shape[0]))
    if len(values) != scores.shape[0]:
        raise ValueError(f"{len(values)} regions should have as many channels, got {scores.shape[0]}.")
    if max(values) > HIGHEST_LABEL:
        raise ValueError(f"A mask holds label values up to {HIGHEST_LABEL}, got {max(values)}.")
    first = _cropped_scores(scores[0], footprint)
    best = first.new_full(first.shape, REGION_THRESHOLD) if regions_class_order else first.clone()
    winner = first.new_full(first.shape, 0 if regions_class_order else values[0]).byte()
    for channel in range(0 if regions_class_order else 1, len(values)):
        planes = first if channel == 0 else _cropped_scores(scores[channel], footprint)
        wins = planes > best
        winner[wins] = values[channel]
        if not regions_class_order:
            best[wins] = planes[wins]
    return winner.cpu().numpy()


def painted_regions(probabilities: np.ndarray, regions_class_order: tuple[int, ...]) -> np.ndarray:
    """The label map, uint8 (*spatial), of region probabilities (R, *spatial): as in `cropped_label`."""
    label = np.zeros(probabilities.shape[1:], np.uint8)
    for channel, value in zip(probabilities, regions_class_order, strict=True):
        label[channel > REGION_THRESHOLD] = value
    return label


def restore_map(values: np.ndarray | Tensor, footprint: Footprint, *, outside: float = 0.0) -> np.ndarray:
    """A float map (D, H, W) on the planned grid as float32 (X, Y, Z) in the axes of the file."""
    return _place(_cropped_scores(values, footprint).cpu().numpy(), footprint, outside=outside)


def restore_probabilities(
    probabilities: np.ndarray | Tensor, footprint: Footprint, *, has_background: bool
) -> Iterator[np.ndarray]:
    """Each channel of (C, D, H, W) probabilities as float32 (X, Y, Z) in the axes of the file, one at a time.

    What was cropped away has probability 1 in the first channel where that is the background, else 0.
    """
    for index, channel in enumerate(probabilities):
        yield restore_map(channel, footprint, outside=float(has_background and index == 0))


def _coarse_axis(footprint: Footprint) -> int | None:
    """The axis that `prepare` resampled apart, from the native spacing first, then from the planned one.

    The planned spacing follows from the shapes, so it carries their rounding; axes that tie within it tie.
    """
    d, h, w = (
        spacing * old / new
        for spacing, old, new in zip(
            footprint.oriented_spacing_mm, footprint.cropped_shape, footprint.planned_shape, strict=True
        )
    )
    coarsest = max(d, h, w)
    planned = tuple(coarsest if coarsest / value < ROUNDING else value for value in (d, h, w))
    target_mm = (planned[0], planned[1], planned[2])
    return coarse_axis(footprint.oriented_spacing_mm, target_mm, resampling=footprint.resampling)


def _cropped_scores(scores: np.ndarray | Tensor, footprint: Footprint) -> Tensor:
    """One float (D, H, W) channel, unpadded and resampled to the cropped volume."""
    import torch

    channel = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(scores))
    planned = _without_padding(channel, footprint)
    return resample_probability(planned.float(), footprint.cropped_shape, coarse=_coarse_axis(footprint))


def _without_padding(channel: Tensor, footprint: Footprint) -> Tensor:
    """The planned volume; a channel that was never padded passes as it is."""
    if tuple(channel.shape) == footprint.planned_shape:
        return channel
    stop = as_shape(a + b for a, b in zip(footprint.padding_before, footprint.planned_shape, strict=True))
    padded = as_shape(a + b for a, b in zip(stop, footprint.padding_after, strict=True))
    if tuple(channel.shape) != padded:
        raise ValueError(
            f"A prediction should have the planned shape {footprint.planned_shape}, or {padded} with its "
            f"padding, got {tuple(channel.shape)}."
        )
    return channel[Box(start=footprint.padding_before, stop=stop).slices]


def _place(volume: np.ndarray, footprint: Footprint, *, outside: float) -> np.ndarray:
    """(D, H, W) of the crop as (X, Y, Z) of the file."""
    box = Box(start=footprint.crop_start, stop=footprint.crop_stop)
    whole = uncrop(volume, box, shape=footprint.oriented_shape, fill=outside)
    return np.ascontiguousarray(
        to_file_axes(whole, orientation=footprint.orientation, axis_order=footprint.axis_order)
    )
