"""SEG and RTSTRUCT objects -> one label map per image series, every overlap and stray object named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dicom_folders import DicomSeries
from data_preprocessing.formats.dicom import DicomStack
from data_preprocessing.formats.dicom_headers import read_dicom, referenced_series
from data_preprocessing.formats.dicom_rtstruct import roi_names, rtstruct_slices
from data_preprocessing.formats.dicom_seg import SliceMask, seg_slices, segment_names
from data_preprocessing.volume import refuse


def structure_names(path: Path) -> tuple[str, ...]:
    """The names of the structures in a SEG or RTSTRUCT object."""
    return tuple((roi_names(path) if _is_rtstruct(path) else segment_names(path)).values())


def series_of_mask(path: Path, series: Sequence[DicomSeries]) -> DicomSeries | None:
    """The image series that a mask object refers to; None where it is not among `series`."""
    wanted = referenced_series(path)
    found = [item for item in series if item.uid in wanted]
    if len(found) > 1:
        what = f"the object refers to {len(found)} series here; which one it was drawn on is not clear."
        raise refuse("E211", path, what, "remove all series but that one.")
    return found[0] if found else None


def label_map(
    masks: Sequence[Path], stack: DicomStack, values: Mapping[str, int], *, may_overlap: bool
) -> np.ndarray:
    """(x, y, z) int16: value `values[name]` inside that structure; structures without a value are left out.

    Where structures overlap the higher value counts with `may_overlap`; else VolumeError names the pairs.
    """
    columns, rows, slices = stack.shape
    label = np.zeros((slices, rows, columns), np.int16)
    names = {value: name for name, value in values.items()}
    shared: Counter[tuple[str, str]] = Counter()
    for path in masks:
        for part in _slices(path, stack):
            value = values.get(part.structure)
            if value is None:
                continue
            plane = label[part.slice_index]
            taken = plane[part.inside]
            for other in np.unique(taken[(taken > 0) & (taken != value)]):
                shared[names[int(other)], part.structure] += int((taken == other).sum())
            plane[part.inside] = np.maximum(taken, value)
    if shared and not may_overlap:
        pairs = ", ".join(f"{a} and {b} ({count} voxels)" for (a, b), count in shared.most_common(5))
        fix = "give --structures in an order; a later one then covers those before it."
        raise refuse("E304", masks[0], f"structures overlap: {pairs}.", fix)
    return label.transpose(2, 1, 0)


def _slices(path: Path, stack: DicomStack) -> Iterator[SliceMask]:
    return rtstruct_slices(path, stack) if _is_rtstruct(path) else seg_slices(path, stack)


def _is_rtstruct(path: Path) -> bool:
    return str(read_dicom(path, tags=["Modality"]).get("Modality", "")) == "RTSTRUCT"
