"""Slices in any order -> one straight, even stack, or the reason why they are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.formats.dicom_headers import Frame
from data_preprocessing.volume import LPS_TO_RAS, refuse

DIRECTION_TOLERANCE = 1e-3  # cosine; how far two slices may be turned against each other
SPACING_TOLERANCE = 1e-3  # relative difference of the pixel spacing of two slices
GAP_TOLERANCE = 0.05  # relative difference of a gap from the median one; positions are stored rounded
STRAIGHT_MM = 0.1  # how far a slice may lie beside the line through the first and the last
TILT_LIMIT = 1e-3  # of such a sideways step, relative to the height of the stack


def stack(frames: Sequence[Frame]) -> tuple[list[Frame], np.ndarray]:
    """The slices by position along their normal, and the affine (column, row, slice) -> RAS in mm.

    Raises VolumeError that names the file of the slice that does not fit.
    """
    first = frames[0]
    for frame in frames:
        _check_like(frame, first)
    row, column = first.orientation
    _check_directions(row, column, first.file)
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    heights = np.array([float(frame.position @ normal) for frame in ordered])
    _check_gaps(ordered, heights)
    _check_straight(ordered, heights, normal)
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_mm[1]
    affine[:3, 1] = column * first.pixel_mm[0]
    affine[:3, 2] = normal * _step_mm(ordered, heights)
    affine[:3, 3] = ordered[0].position
    return ordered, LPS_TO_RAS @ affine


def _check_like(frame: Frame, first: Frame) -> None:
    """Same size, same pixel spacing, same direction."""
    if frame.shape != first.shape:
        what = f"the slice has {frame.shape} rows and columns, {first.file.name} has {first.shape}."
    elif not np.allclose(frame.pixel_mm, first.pixel_mm, rtol=SPACING_TOLERANCE, atol=0):
        what = f"the pixel spacing is {frame.pixel_mm} mm, that of {first.file.name} is {first.pixel_mm} mm."
    elif np.abs(frame.orientation - first.orientation).max() > DIRECTION_TOLERANCE:
        what = (
            f"the slice runs along {frame.orientation.round(4).tolist()}, "
            f"{first.file.name} along {first.orientation.round(4).tolist()}."
        )
    else:
        return
    raise refuse("E211", frame.file, what, "separate localisers and reformats from the series.")


def _check_directions(row: np.ndarray, column: np.ndarray, path: Path) -> None:
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > DIRECTION_TOLERANCE or abs(row @ column) > TILT_LIMIT:
        what = f"ImageOrientationPatient holds no two perpendicular unit vectors: {[*row, *column]}."
        raise refuse("E211", path, what, "export the series again.")


def _check_gaps(ordered: Sequence[Frame], heights: np.ndarray) -> None:
    """No two slices in one place, and the same distance between all neighbours."""
    gaps = np.diff(heights)
    if gaps.size == 0:
        return
    usual = float(np.median(gaps))
    repeated = np.flatnonzero(gaps <= max(usual, 0.0) * GAP_TOLERANCE)
    if repeated.size:
        below, above = ordered[repeated[0]], ordered[repeated[0] + 1]
        what = f"the slice lies where {_name(below, above)} lies, at {heights[repeated[0]]:.6g} mm."
        fix = "keep one of the two; a series of several times or echoes must be divided first."
        raise refuse("E211", above.file, what, fix)
    uneven = np.flatnonzero(np.abs(gaps - usual) > GAP_TOLERANCE * usual)
    if uneven.size:
        below, above = ordered[uneven[0]], ordered[uneven[0] + 1]
        what = (
            f"the slice lies {gaps[uneven[0]]:.4g} mm from {_name(below, above)}, the usual distance is "
            f"{usual:.4g} mm: slices are missing, or the distances differ."
        )
        fix = "export the whole series again, or resample it to even distances with another tool."
        raise refuse("E211", above.file, what, fix)


def _check_straight(ordered: Sequence[Frame], heights: np.ndarray, normal: np.ndarray) -> None:
    """Every slice right above the first; a stack that leans was taken with a tilted gantry."""
    for frame, height in zip(ordered, heights, strict=True):
        sideways = frame.position - ordered[0].position - normal * (height - heights[0])
        shift = float(np.linalg.norm(sideways))
        rise = float(height - heights[0])
        if shift > STRAIGHT_MM and shift > TILT_LIMIT * rise:
            angle = math.degrees(math.atan2(shift, rise))
            what = (
                f"the slice lies {shift:.4g} mm beside the one of {ordered[0].file.name}: the stack leans by "
                f"{angle:.3g} degrees (gantry tilt)."
            )
            fix = "resample the series to an upright grid first, for example with dcm2niix."
            raise refuse("E211", frame.file, what, fix)


def _step_mm(ordered: Sequence[Frame], heights: np.ndarray) -> float:
    if len(ordered) > 1:
        return float(heights[-1] - heights[0]) / (len(ordered) - 1)
    if ordered[0].thickness_mm <= 0:
        what = "a single slice without a thickness."
        raise refuse("E211", ordered[0].file, what, "give the whole series.")
    return ordered[0].thickness_mm


def _name(below: Frame, above: Frame) -> str:
    return f"frame {below.index}" if below.file == above.file else below.file.name
