"""Memory that a case needs: bytes of the arrays that are held at once, from its headers and the plan.

The steps are those of `cases`, `prepare` and prediction. What is cropped away is not known from a header, so
there are two numbers: what is needed in any case, and what is needed if nothing is cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from data_preprocessing.faults import VolumeError
from data_preprocessing.geometry import as_shape, file_axes, planned_spacing
from data_preprocessing.nifti_header import spacing_of
from data_preprocessing.prepare import target_spacing
from data_preprocessing.resampling import resampled_shape
from data_preprocessing.volume_io import axis_codes, measure_volume
from utils.contracts import Plan, RawCase, Shape, Spacing

SINGLE, LABEL, FLAG = 4, 2, 1  # bytes of a float32, an int16, a bool or uint8
WORLD: Shape = (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSize:
    """A raw case as its headers describe it; shape and spacing are (z, y, x) of the world."""

    case_id: str
    shape: Shape
    spacing_mm: Spacing
    channels: int
    reading: int  # bytes that are held while its files are read, the loaded arrays among them
    has_label: bool
    cropped: Shape | None = None  # what the crop to the content leaves, where that is known

    @property
    def voxels(self) -> int:
        """Voxels of one channel."""
        return prod(self.shape)

    @property
    def loaded(self) -> int:
        """Bytes of the loaded image and label."""
        return self.voxels * (SINGLE * self.channels + LABEL * self.has_label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that a case needs: `least` in any case, `most` if nothing of it can be cropped."""

    case_id: str
    shape: Shape
    least: int
    most: int


def case_size(case: RawCase) -> CaseSize | None:
    """The size of a case by the headers of its images; None where one of them cannot be read.

    What is wrong with a file is told by those who read its voxels.
    """
    try:
        sizes = [measure_volume(path) for path in case.images]
    except (VolumeError, OSError):
        return None
    first = sizes[0]
    codes = axis_codes(first.affine)
    voxels = prod(first.shape[:3])
    reading, held = 0, 0
    for size in sizes:
        own = voxels * size.channels * SINGLE
        reading = max(reading, held + size.beside + own)
        held += own
    stacked = held * (2 if len(sizes) > 1 else 1)
    has_label = case.label is not None
    return CaseSize(
        case_id=case.case_id,
        shape=as_shape(first.shape[axis] for axis in file_axes(codes, WORLD)),
        spacing_mm=planned_spacing(spacing_of(first.affine), orientation=codes),
        channels=sum(size.channels for size in sizes),
        reading=max(reading, stacked + voxels * LABEL * has_label),
        has_label=has_label,
    )


def reading_need(size: CaseSize) -> Need:
    """Reading, checking and cropping, before there is a plan."""
    most = max(size.reading, size.loaded + _cropped_bytes(size, size.voxels) + size.voxels * FLAG)
    return Need(case_id=size.case_id, shape=size.shape, least=size.reading, most=most)


def preparing_need(size: CaseSize, plan: Plan) -> Need:
    """Reading, cropping, normalising and resampling for the plan."""
    most = max(size.reading, _preparing(size, plan))
    least = most if size.cropped is not None else size.reading
    return Need(case_id=size.case_id, shape=size.shape, least=least, most=most)


def predicting_need(size: CaseSize, plans: Sequence[Plan]) -> Need:
    """Preparing a scan for every plan, one answer at a time on the host, and the mask on the scan's grid.

    Logits and probabilities are counted in full: on a GPU the former lie on the device.
    """
    images = [SINGLE * plan.num_channels * planned_voxels(size, plan) for plan in plans]
    steps = [size.reading]
    for plan, image in zip(plans, images, strict=True):
        maps = SINGLE * plan.num_logits * planned_voxels(size, plan)
        restoring = size.voxels * (3 * SINGLE + 2 * FLAG)
        steps += [_preparing(size, plan), size.loaded + sum(images) + max(image + 2 * maps, maps + restoring)]
    return Need(case_id=size.case_id, shape=size.shape, least=size.reading, most=max(steps))


def planned_voxels(size: CaseSize, plan: Plan) -> int:
    """Voxels of one channel on the planned grid, padding to the patch left aside."""
    shape = size.cropped or size.shape
    spacing = _permuted(size.spacing_mm, plan)
    return prod(
        resampled_shape(
            as_shape(shape[axis] for axis in plan.axis_order),
            spacing_mm=spacing,
            target_mm=target_spacing(plan, spacing),
        )
    )


def with_crop(size: CaseSize, shape: Shape | None) -> CaseSize:
    """The size with what the crop leaves of it, (z, y, x)."""
    return replace(size, cropped=shape)


def _permuted(spacing_mm: Spacing, plan: Plan) -> Spacing:
    depth, height, width = (spacing_mm[axis] for axis in plan.axis_order)
    return depth, height, width


def _cropped_bytes(size: CaseSize, voxels: int) -> int:
    """Image, label and content mask behind the crop."""
    return voxels * (SINGLE * size.channels + LABEL * size.has_label + FLAG)


def _preparing(size: CaseSize, plan: Plan) -> int:
    """Loaded, cropped and what the step that holds most has besides."""
    kept = size.voxels if size.cropped is None else prod(size.cropped)
    planned = planned_voxels(size, plan)
    old, new = SINGLE * size.channels * kept, SINGLE * size.channels * planned
    normalising = 2 * old  # one by one, then together
    resampling = old + (2 * new if planned != kept else 0)
    return size.loaded + _cropped_bytes(size, kept) + max(normalising, resampling)
