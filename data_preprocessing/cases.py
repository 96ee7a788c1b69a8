"""One RawCase -> image, label and geometry, with everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preprocessing.faults import (
    DatasetFaults,
    VolumeError,
    errors_of,
    make_fault,
    of_case,
)
from data_preprocessing.nifti_header import corner_distance_mm
from data_preprocessing.volume_io import (
    Volume,
    first_index,
    mask_ending,
    read_label_volume,
    read_volume,
)
from utils.contracts import RawCase, Spacing
from utils.errors import Fault

SPACING_TOLERANCE = 1e-3  # relative difference between two files of one case
POSITION_TOLERANCE_MM = 0.1  # how far two files of one case may put the same corner apart
RUN = 4096  # voxels of a label that are looked at together
MAX_LISTED = 8  # undeclared label values that a message lists


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedCase:
    """The voxels of one case in file axes, and where they lie; label (X, Y, Z) int16 or None."""

    case_id: str
    image: np.ndarray  # (C, X, Y, Z) float32
    label: np.ndarray | None
    affine: np.ndarray  # 4 x 4, voxel index to millimetres in RAS
    spacing_mm: Spacing  # (x, y, z)
    orientation: str  # where each axis runs to, for example "LPS"
    qform_code: int
    sform_code: int
    mask_ending: str = ".nii.gz"  # of a mask in the format of the image
    remarks: tuple[Fault, ...] = ()  # warnings only


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """A case as far as it could be read; `loaded` is None where a file could not."""

    loaded: LoadedCase | None
    faults: tuple[Fault, ...]


def load_case(case: RawCase, *, allowed_labels: frozenset[int] | None = None) -> LoadedCase:
    """Image, label and geometry of one case; raises DatasetFaults with all errors that were found.

    With `allowed_labels`, any other label value is an error.
    """
    inspection = inspect_case(case, allowed_labels=allowed_labels)
    errors = errors_of(inspection.faults)
    if errors or inspection.loaded is None:
        raise DatasetFaults(errors)
    return inspection.loaded


def inspect_case(
    case: RawCase, *, allowed_labels: frozenset[int] | None = None, num_channels: int | None = None
) -> Inspection:
    """Read one case and collect every fault as a value; `num_channels` is what the dataset declares."""
    faults: list[Fault] = []
    volumes = [volume for path in case.images if (volume := _attempt(read_volume, path, faults)) is not None]
    label = _attempt(read_label_volume, case.label, faults) if case.label else None
    loaded = None
    if len(volumes) == len(case.images):
        for path, volume in zip(case.images[1:], volumes[1:], strict=True):
            faults.extend(_grid_faults(volume, path, volumes[0], case.images[0]))
        faults.extend(_channel_count_faults(case, volumes, num_channels))
        if label is not None and case.label is not None:
            faults.extend(_grid_faults(label, case.label, volumes[0], case.images[0]))
        if not errors_of(faults):
            loaded = _assemble(case, volumes, label, tuple(faults))
            faults.extend(_intensity_faults(loaded.image, case))
    if label is not None and case.label is not None:
        faults.extend(_label_faults(label.voxels, case.label, allowed_labels))
    return Inspection(loaded=loaded, faults=of_case(case.case_id, faults))


def _attempt(read: Callable[[Path], Volume], path: Path, faults: list[Fault]) -> Volume | None:
    """The volume at `path`, or None with the reason added to `faults`."""
    try:
        volume = read(path)
    except VolumeError as error:
        faults.append(error.fault)
        return None
    faults.extend(volume.remarks)
    return volume


def _assemble(
    case: RawCase, volumes: list[Volume], label: Volume | None, remarks: tuple[Fault, ...]
) -> LoadedCase:
    first = volumes[0]
    return LoadedCase(
        case_id=case.case_id,
        image=_stack_channels([volume.voxels for volume in volumes]),
        label=None if label is None else label.voxels,
        affine=first.affine,
        spacing_mm=first.spacing_mm,
        orientation=first.orientation,
        qform_code=first.qform_code,
        sform_code=first.sform_code,
        mask_ending=mask_ending(case.images[0]),
        remarks=of_case(case.case_id, remarks),
    )


def _stack_channels(channels: list[np.ndarray]) -> np.ndarray:
    """(C, X, Y, Z) from one file per channel or one 4-D file; x stays the fastest axis in memory."""
    if len(channels) == 1:
        return channels[0][None] if channels[0].ndim == 3 else np.moveaxis(channels[0], -1, 0)
    stacked = np.empty((len(channels), *channels[0].shape[::-1]), dtype=np.float32)
    for index, channel in enumerate(channels):
        stacked[index] = channel.T
    return stacked.transpose(0, 3, 2, 1)


def _channel_count_faults(case: RawCase, volumes: list[Volume], expected: int | None) -> list[Fault]:
    counts = [1 if volume.voxels.ndim == 3 else volume.voxels.shape[-1] for volume in volumes]
    if len(counts) > 1 and max(counts) > 1:
        index = counts.index(max(counts))
        what = f"the file of channel {index} holds {counts[index]} volumes of its own, it should hold one."
        return [
            make_fault("E305", case.images[index], what, "store one channel per file, or all in one file.")
        ]
    if expected is not None and sum(counts) != expected:
        what = f"the image has {sum(counts)} channels, the dataset declares {expected}."
        fix = "complete the image, or correct the channels in dataset.json."
        return [make_fault("E305", case.images[0], what, fix)]
    return []


def _grid_faults(volume: Volume, path: Path, reference: Volume, reference_path: Path) -> list[Fault]:
    """What keeps `volume` from lying voxel on voxel over `reference`: the most basic difference only."""
    shape, wanted = volume.voxels.shape, reference.voxels.shape[:3]
    other = reference_path.name
    if shape != wanted:
        what = f"the shape is {shape}, but {other} has {wanted}."
        return [make_fault("E306", path, what, "resample one file to the grid of the other.")]
    spacing, wanted_spacing = np.array(volume.spacing_mm), np.array(reference.spacing_mm)
    if (np.abs(spacing - wanted_spacing) > SPACING_TOLERANCE * wanted_spacing).any():
        what = f"the spacing is {_text(spacing)} mm, but {other} has {_text(wanted_spacing)} mm."
        return [
            make_fault("E307", path, what, "resample one file to the grid of the other, or mend its header.")
        ]
    if not _has_position(volume) or not _has_position(reference):
        if _has_position(volume) == _has_position(reference):
            return []
        bare = other if _has_position(volume) else path.name
        what = f"{bare} stores no orientation (both form codes are 0); its position was not compared."
        return [make_fault("W303", path, what, "write the affine of the other file into it.")]
    distance = corner_distance_mm(volume.affine, reference.affine, wanted)
    if distance > POSITION_TOLERANCE_MM:
        what = (
            f"a corner of the volume ({volume.orientation}) lies {distance:.4g} mm from the one of {other} "
            f"({reference.orientation}); {POSITION_TOLERANCE_MM} mm are allowed."
        )
        return [
            make_fault("E307", path, what, "resample one file to the grid of the other, or mend its header.")
        ]
    return []


def _has_position(volume: Volume) -> bool:
    return volume.qform_code > 0 or volume.sform_code > 0


def _text(spacing: np.ndarray) -> str:
    return " x ".join(f"{value:.6g}" for value in spacing)


def _intensity_faults(image: np.ndarray, case: RawCase) -> list[Fault]:
    """NaN, infinity and constants; one pass for the extremes finds all three."""
    faults: list[Fault] = []
    constant = []
    for index, channel in enumerate(image):
        path = case.images[index if len(case.images) > 1 else 0]
        with np.errstate(invalid="ignore"):
            low, high = channel.min(), channel.max()
        if not np.isfinite(low) or not np.isfinite(high):
            faults.append(_not_finite(channel, index, path))
        elif low == high:
            constant.append((index, path, float(low)))
    for index, path, value in constant:
        code = "E302" if len(constant) == len(image) else "W302"
        what = f"every voxel of channel {index} is {value:g}."
        faults.append(
            make_fault(code, path, what, "export the image again; a constant image holds no signal.")
        )
    return faults


def _not_finite(channel: np.ndarray, index: int, path: Path) -> Fault:
    is_bad = ~np.isfinite(channel)
    num_nan = int(np.isnan(channel).sum())
    what = (
        f"channel {index} holds {num_nan} NaN and {int(is_bad.sum()) - num_nan} infinite voxels, "
        f"the first at {first_index(is_bad)}."
    )
    return make_fault(
        "E301", path, what, "replace them by the background intensity, or export the image again."
    )


def _label_faults(label: np.ndarray, path: Path, allowed: frozenset[int] | None) -> list[Fault]:
    values = label_values(label)
    if values == (0,):
        return [
            make_fault("W301", path, "the label is empty: all voxels are background.", "check that it is so.")
        ]
    if allowed is None:
        return []
    undeclared = sorted(set(values) - allowed)
    if not undeclared:
        return []
    listed = [_describe_value(label, value) for value in undeclared[:MAX_LISTED]]
    more = f" and {len(undeclared) - MAX_LISTED} more values" if len(undeclared) > MAX_LISTED else ""
    hint = "it looks like an image; " if len(undeclared) > MAX_LISTED else ""
    what = f"label values that are not declared: {', '.join(listed)}{more}; declared are {sorted(allowed)}."
    return [
        make_fault("E304", path, what, f"{hint}correct the label, or declare the values in dataset.json.")
    ]


def _describe_value(label: np.ndarray, value: int) -> str:
    is_value = label == value
    return f"{value} ({int(is_value.sum())} voxels, first at {first_index(is_value)})"


def label_values(label: np.ndarray) -> tuple[int, ...]:
    """The distinct values of an integer volume, ascending; counts instead of sorting.

    Most of a label is one value in long runs: of a run that holds at most two neighbouring values its ends
    are all there is to know.
    """
    flat = label.ravel(order="K")
    runs = flat[: flat.size - flat.size % RUN].reshape(-1, RUN)
    low, high = (ends.astype(np.int32) for ends in (runs.min(axis=1), runs.max(axis=1)))
    parts = [low, high, flat[runs.size :], runs[high - low > 1].ravel()]
    lowest = min(int(part.min()) for part in parts if part.size)
    seen = [np.bincount(part.astype(np.int64) - lowest) for part in parts]
    values = {int(value) + lowest for counts in seen for value in np.flatnonzero(counts)}
    return tuple(sorted(values))
