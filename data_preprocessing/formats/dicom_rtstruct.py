"""RTSTRUCT contours -> masks on the slices of a series: a pixel whose centre lies inside belongs to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.path import Path as Polygon

from data_preprocessing.formats.dicom import DicomStack
from data_preprocessing.formats.dicom_headers import MASK_TAGS, PARSER_ERRORS, read_dicom
from data_preprocessing.formats.dicom_seg import SliceMask
from data_preprocessing.volume import LPS_TO_RAS, refuse

if TYPE_CHECKING:
    from pydicom import Dataset

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
HEIGHT_TOLERANCE = 0.1  # slices; how far a contour may lie above or below one


def roi_names(path: Path) -> dict[int, str]:
    """ROI number -> name, of those that have closed contours."""
    data = read_dicom(path, tags=MASK_TAGS)
    return {number: name for number, name in _names(data, path).items() if _contours(data, number, path)}


def rtstruct_slices(path: Path, stack: DicomStack) -> Iterator[SliceMask]:
    """The ROIs of a structure set, slice by slice; where contours of one ROI overlap, the inner is a hole.

    Raises VolumeError where a contour lies outside the series or between two slices.
    """
    data = read_dicom(path, tags=MASK_TAGS)
    to_voxel = np.linalg.inv(LPS_TO_RAS @ stack.affine)
    for number, name in _names(data, path).items():
        inside: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(stack.frames[0].shape, bool))
        for points in _contours(data, number, path):
            place, outline = _placed(points, to_voxel, stack, path, name)
            _toggle(inside[place], outline)
        for place in sorted(inside):
            yield SliceMask(structure=name, slice_index=place, inside=inside[place])


def _names(data: Dataset, path: Path) -> dict[int, str]:
    try:
        named = {
            int(item.ROINumber): str(item.get("ROIName", "")).strip()
            for item in data.get("StructureSetROISequence", None) or ()
        }
    except PARSER_ERRORS as error:
        raise refuse("E202", path, f"a ROI has no number ({error}).", "export the RTSTRUCT again.") from error
    if not named or not all(named.values()) or len(set(named.values())) != len(named):
        what = f"the ROIs are named {list(named.values())}; each needs a name of its own."
        raise refuse("E202", path, what, "export the RTSTRUCT again with a name for each ROI.")
    return named


def _contours(data: Dataset, number: int, path: Path) -> list[np.ndarray]:
    """(points, 3) in mm, LPS, of each closed contour of a ROI; points and open lines bound nothing."""
    found = []
    try:
        for roi in data.get("ROIContourSequence", None) or ():
            contours = roi.get("ContourSequence", None) or ()
            if int(roi.ReferencedROINumber) == number:
                closed = [item for item in contours if item.get("ContourGeometricType", "") in CLOSED]
                found.extend(np.array([float(v) for v in item.ContourData]).reshape(-1, 3) for item in closed)
    except PARSER_ERRORS as error:
        what = f"a contour of ROI {number} is damaged ({error})."
        raise refuse("E202", path, what, "export the RTSTRUCT again.") from error
    return found


def _placed(
    points: np.ndarray, to_voxel: np.ndarray, stack: DicomStack, path: Path, name: str
) -> tuple[int, np.ndarray]:
    """The slice of a contour, and its points as (column, row)."""
    voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    low, high = float(voxels[:, 2].min()), float(voxels[:, 2].max())
    place = round((low + high) / 2)
    if max(place - low, high - place) > HEIGHT_TOLERANCE or not 0 <= place < stack.shape[2]:
        what = (
            f"a contour of {name!r} lies at slice {low:.4g} to {high:.4g} of the series, which has "
            f"slices 0 to {stack.shape[2] - 1}."
        )
        fix = "give the series that the contours were drawn on, with all its slices."
        raise refuse("E307", path, what, fix)
    return place, voxels[:, :2]


def _toggle(inside: np.ndarray, outline: np.ndarray) -> None:
    """Invert the pixels of (rows, columns) whose centre lies inside the outline."""
    rows, columns = inside.shape
    left, top = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)) + 1, (columns, rows)).astype(int)
    if right <= left or bottom <= top or len(outline) < 3:
        return
    grid = np.stack(np.meshgrid(np.arange(left, right), np.arange(top, bottom)), axis=-1)
    hits = Polygon(outline).contains_points(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    inside[top:bottom, left:right] ^= hits
