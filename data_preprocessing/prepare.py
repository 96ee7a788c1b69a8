"""One raw case and the plan become the arrays that a network reads, and the footprint that leads back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_preprocessing import geometry
from data_preprocessing.foreground import foreground_table
from data_preprocessing.geometry import Box, Padding, as_shape
from data_preprocessing.normalisers import build_normaliser
from data_preprocessing.planners import OWN_GRID
from data_preprocessing.resampling import (
    coarse_axis,
    resample_image,
    resample_label,
    resampled_shape,
    stacked,
)
from utils.contracts import (
    NO_CLASS,
    OUTSIDE_LABEL,
    Footprint,
    IntensityStats,
    Plan,
    PreprocessedCase,
    RawCase,
    Shape,
    Spacing,
)
from utils.prepared_folder import (
    FOREGROUND,
    IMAGE,
    LABEL,
    META,
    ORIGINAL_LABEL,
    case_file,
    write_prepared_case,
)
from utils.storage import write_array

if TYPE_CHECKING:
    from data_preprocessing.cases import LoadedCase

Mode = Literal["training", "val", "test"]  # val and test keep the planned grid free of labels and padding
NVIDIA = (
    "nvidia"  # crop to positive voxels, resample, normalise; nnunet: crop to non-zero, normalise, resample
)
HALF_PRECISION_MAX = 65504.0  # largest finite float16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CroppedCase:
    """A case in planned axes, cut to its content: image (C, D, H, W) float32, label (D, H, W) int16 as drawn.

    `mask` is the boolean (D, H, W) of the content, its holes filled.
    """

    image: np.ndarray
    label: np.ndarray | None
    mask: np.ndarray
    box: Box
    uncropped_shape: Shape
    spacing_mm: Spacing

    @property
    def relative_size(self) -> float:
        """Voxels after the crop / voxels before it."""
        return self.mask.size / float(np.prod(self.uncropped_shape))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedArrays:
    """What is stored of one case: `image` (C, D, H, W) float32, the others int16 (1, D, H, W) or a table."""

    image: np.ndarray
    label: np.ndarray | None  # None where the mode wants none
    original_label: np.ndarray | None  # cropped, not resampled, as drawn
    foreground: np.ndarray | None
    has_mask: bool  # whether an expert drew one
    meta: np.ndarray | None  # the crop as NVIDIA's tools read it, preset nvidia only
    footprint: Footprint


def crop_case(loaded: LoadedCase, *, axis_order: Shape = (0, 1, 2), preset: str = "nnunet") -> CroppedCase:
    """Orient to RAS, transpose to (z, y, x), permute to `axis_order`, cut away empty margins."""
    image = geometry.to_planned_axes(loaded.image, orientation=loaded.orientation, axis_order=axis_order)
    content = geometry.positive_mask(image) if preset == NVIDIA else geometry.nonzero_mask(image)
    box = geometry.bounding_box(content)
    label = None
    if loaded.label is not None:
        drawn = geometry.to_planned_axes(loaded.label, orientation=loaded.orientation, axis_order=axis_order)
        label = np.ascontiguousarray(geometry.crop(drawn, box))
    return CroppedCase(
        image=np.ascontiguousarray(geometry.crop(image, box), dtype=np.float32),
        label=label,
        mask=geometry.fill_holes(np.ascontiguousarray(geometry.crop(content, box))),
        box=box,
        uncropped_shape=as_shape(image.shape[1:]),
        spacing_mm=geometry.planned_spacing(
            loaded.spacing_mm, orientation=loaded.orientation, axis_order=axis_order
        ),
    )


def prepare_case(loaded: LoadedCase, plan: Plan, *, mode: Mode = "training") -> PreparedArrays:
    """Crop, normalise, resample and, for training, pad to the patch; `NVIDIA` tells each preset's order."""
    cropped = crop_case(loaded, axis_order=plan.axis_order, preset=plan.preset)
    target_mm = target_spacing(plan, cropped.spacing_mm)
    new_shape = resampled_shape(
        as_shape(cropped.mask.shape),
        spacing_mm=cropped.spacing_mm,
        target_mm=target_mm,
        to_whole=int if plan.preset == NVIDIA else round,
    )
    coarse = coarse_axis(cropped.spacing_mm, target_mm, resampling=plan.resampling)
    image = _prepare_image(cropped, plan, new_shape, coarse)
    label = _training_label(cropped, plan, new_shape, coarse) if mode == "training" else None
    padding = geometry.padding_to(new_shape, plan.patch if mode == "training" else new_shape)
    image = geometry.pad(image, padding)
    if label is not None:
        label = geometry.pad(label, padding, fill=0 if plan.preset == NVIDIA else OUTSIDE_LABEL)
    footprint = _footprint(loaded, plan, cropped, new_shape, padding)
    return PreparedArrays(
        image=image,
        label=None if label is None else label[None],
        original_label=None if cropped.label is None else cropped.label[None],
        foreground=None if label is None else foreground_table(label, ignore_label=plan.ignore_label),
        has_mask=cropped.label is not None,
        meta=_meta(footprint) if plan.preset == NVIDIA else None,
        footprint=footprint,
    )


def target_spacing(plan: Plan, spacing_mm: Spacing) -> Spacing:
    """Where to resample to: the plan's spacing, but a one-slice patch keeps the slices of the case.

    The nvidia preset resamples nothing for one-slice patches; a plan without resampling resamples nothing.
    """
    if plan.resampling == OWN_GRID:
        return spacing_mm
    if plan.patch[0] != 1:
        return plan.spacing_mm
    return spacing_mm if plan.preset == NVIDIA else (spacing_mm[0], *plan.spacing_mm[1:])


def normalise(image: np.ndarray, mask: np.ndarray, plan: Plan) -> np.ndarray:
    """Each channel of (C, D, H, W) by its own normaliser.

    The nvidia preset takes z-scores over the non-zero voxels of each channel, whatever the plan says.
    """
    channels = []
    for i, channel in enumerate(image):
        is_masked = plan.uses_mask[i] or plan.preset == NVIDIA
        inside = channel != 0 if plan.preset == NVIDIA else mask
        normaliser = build_normaliser(plan.normalisers[i], uses_mask=is_masked)
        channels.append(normaliser.apply(channel, inside, plan.intensity[i]))
    return stacked(channels)


def with_foreground_channel(plan: Plan) -> Plan:
    """The plan with one more input channel: 1 inside the non-zero mask of a case, 0 outside."""
    unit = IntensityStats(mean=0.0, std=1.0, median=0.0, min=0.0, max=1.0, low=0.0, high=1.0)
    return replace(
        plan,
        foreground_channel=True,
        num_channels=plan.num_channels + 1,
        channel_names=(*plan.channel_names, "foreground"),
        normalisers=(*plan.normalisers, "identity"),
        uses_mask=(*plan.uses_mask, False),
        intensity=(*plan.intensity, unit),
    )


def _prepare_image(cropped: CroppedCase, plan: Plan, new_shape: Shape, coarse: int | None) -> np.ndarray:
    """The normalised, resampled channels, and the foreground channel where the plan has one."""
    if plan.preset == NVIDIA:
        image = normalise(_resampled(cropped.image, plan, new_shape, coarse), cropped.mask, plan)
    else:
        image = _resampled(normalise(cropped.image, cropped.mask, plan), plan, new_shape, coarse)
    if not plan.foreground_channel:
        return image
    # From the raw intensities: after normalisation zero no longer means empty.
    foreground = resample_label(cropped.mask.astype(np.int16), new_shape, coarse=coarse)
    return np.concatenate([image, foreground[None].astype(np.float32)])


def _resampled(image: np.ndarray, plan: Plan, new_shape: Shape, coarse: int | None) -> np.ndarray:
    return resample_image(image, new_shape, coarse=coarse, resampling=plan.resampling)


def _training_label(cropped: CroppedCase, plan: Plan, new_shape: Shape, coarse: int | None) -> np.ndarray:
    """Int16 (D, H, W) on the planned grid, before padding; one value everywhere where no mask was drawn."""
    if cropped.label is None:
        unknown = OUTSIDE_LABEL if plan.ignore_label is None else plan.ignore_label
        return np.full(new_shape, unknown, dtype=np.int16)
    label = cropped.label
    if plan.preset != NVIDIA:
        label = np.where((label == 0) & ~cropped.mask, OUTSIDE_LABEL, label)
    return resample_label(
        label.astype(np.int16, copy=False), new_shape, coarse=coarse, resampling=plan.resampling
    )


def _footprint(
    loaded: LoadedCase, plan: Plan, cropped: CroppedCase, new_shape: Shape, padding: Padding
) -> Footprint:
    x, y, z = (float(value) for value in loaded.spacing_mm)
    return Footprint(
        native_shape=as_shape(loaded.image.shape[1:]),
        native_spacing_mm=(x, y, z),
        orientation=loaded.orientation,
        axis_order=plan.axis_order,
        oriented_shape=cropped.uncropped_shape,
        oriented_spacing_mm=cropped.spacing_mm,
        crop_start=cropped.box.start,
        crop_stop=cropped.box.stop,
        cropped_shape=cropped.box.shape,
        planned_shape=new_shape,
        padding_before=padding.before,
        padding_after=padding.after,
        qform_code=loaded.qform_code,
        sform_code=loaded.sform_code,
        affine=tuple(tuple(float(value) for value in row) for row in loaded.affine),
        mask_ending=loaded.mask_ending,
        resampling=plan.resampling,
    )


def write_prepared(folder: Path, case: RawCase, arrays: PreparedArrays, *, dtype: str) -> PreprocessedCase:
    """Write the files of one case, its record last, and return the record.

    A training case without a mask still has its `_y.npy` (the ignore value, or -1), so that the lists of
    files are equal; its record then names no foreground table.
    """
    image = arrays.image
    if dtype == "float16":
        image = np.clip(image, -HALF_PRECISION_MAX, HALF_PRECISION_MAX)
    files = {
        IMAGE: image.astype(dtype, copy=False),
        LABEL: arrays.label,
        ORIGINAL_LABEL: arrays.original_label,
        FOREGROUND: arrays.foreground,
        META: arrays.meta,
    }
    for suffix, array in files.items():
        if array is not None:
            write_array(case_file(folder, case.case_id, suffix), array)
    has_table = arrays.foreground is not None and arrays.has_mask
    prepared = PreprocessedCase(
        case_id=case.case_id,
        patient_id=case.patient_id,
        image=case_file(folder, case.case_id, IMAGE),
        label=None if arrays.label is None else case_file(folder, case.case_id, LABEL),
        foreground=case_file(folder, case.case_id, FOREGROUND) if has_table else None,
        class_target=NO_CLASS if case.class_target is None else case.class_target,
        shape=as_shape(arrays.image.shape[1:]),
        footprint=arrays.footprint,
    )
    write_prepared_case(folder, prepared)
    return prepared


def _meta(footprint: Footprint) -> np.ndarray:
    """Int32 (4, 3): start and stop of the crop, shape before and after it; the layout of NVIDIA's tools."""
    rows = (footprint.crop_start, footprint.crop_stop, footprint.oriented_shape, footprint.cropped_shape)
    return np.array(rows, dtype=np.int32)
