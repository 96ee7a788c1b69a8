"""What every image file becomes: voxels in file axes, their affine, and the checks that all share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from nibabel.orientations import aff2axcodes

from data_preprocessing.faults import VolumeError, make_fault
from data_preprocessing.nifti_header import check_affine, spacing_of
from utils.contracts import Spacing
from utils.errors import Fault

Purpose = Literal["image", "label"]

INTEGER_TOLERANCE = 1e-3  # a label may be this far from an integer
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's and DICOM's world -> NIfTI's, and back


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """One file as it is stored: (x, y, z) or (x, y, z, channels), in file axes, first axis fastest."""

    voxels: np.ndarray
    affine: np.ndarray  # 4 x 4, voxel index to millimetres in RAS
    spacing_mm: Spacing  # (x, y, z)
    qform_code: int  # with both codes 0 the file has no place in the world, only a spacing
    sform_code: int
    orientation: str  # where each axis runs to, for example "LPS"
    remarks: tuple[Fault, ...] = ()  # warnings: what the reader put up with


class HasGrid(Protocol):
    """What says where its voxels lie, as `Volume` does: a file, or a case that was read from files."""

    @property
    def affine(self) -> np.ndarray:
        """4 x 4, voxel index to millimetres in RAS."""
        ...

    @property
    def qform_code(self) -> int:
        """Of the header, 0: none."""
        ...

    @property
    def sform_code(self) -> int:
        """Of the header, 0: none."""
        ...

    @property
    def spacing_mm(self) -> Spacing:
        """Of the axes (x, y, z)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Where the voxels of a file to be written lie; the fields are those of `Volume`."""

    affine: np.ndarray
    qform_code: int
    sform_code: int
    spacing_mm: Spacing

    @property
    def has_position(self) -> bool:
        """Whether the file says where in the world it lies."""
        return self.qform_code > 0 or self.sform_code > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeSize:
    """What the header of an image file promises; no voxel was read."""

    shape: tuple[int, ...]  # (x, y, z) or (x, y, z, channels)
    affine: np.ndarray  # 4 x 4, voxel index to millimetres in RAS
    beside: int  # bytes that reading holds at once, beside the voxels as float32

    @property
    def channels(self) -> int:
        """Values per voxel."""
        return 1 if len(self.shape) == 3 else self.shape[3]


def axis_codes(affine: np.ndarray) -> str:
    """Where each voxel axis runs to, for example "LPS"; the nearest axes if the scan is oblique."""
    return "".join(str(code) for code in aff2axcodes(affine))


def placed_volume(voxels: np.ndarray, affine: np.ndarray, path: Path, *, has_position: bool) -> Volume:
    """The volume of a format without form codes; refuses an affine that no grid can have.

    Without a position the affine only holds spacing and a nominal orientation.
    """
    check_affine(affine, path)
    code = int(has_position)
    return Volume(
        voxels=voxels,
        affine=affine,
        spacing_mm=spacing_of(affine),
        qform_code=code,
        sform_code=code,
        orientation=axis_codes(affine),
    )


def with_remarks(volume: Volume, *remarks: Fault) -> Volume:
    """The volume with further warnings."""
    return replace(volume, remarks=(*volume.remarks, *remarks))


def volume_shape(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """(x, y, z) or (x, y, z, channels), a single channel dropped; refuses every other number of axes."""
    sizes = shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
    if not 3 <= len(sizes) <= 4 or min(sizes) < 1:
        raise refuse(
            "E206",
            path,
            f"the file has the shape {shape}; a volume has 3 axes of length 1 or more, or 4 with channels.",
            "store a slice as (x, y, 1), and one time point per file.",
        )
    return sizes


def wrapped_negatives(stored: np.ndarray, path: Path) -> tuple[Fault, ...]:
    """Scanners deliver 12 to 15 bits; a larger unsigned value is most often a wrapped negative one."""
    if stored.dtype.name != "uint16" or stored.max() <= np.iinfo(np.int16).max:
        return ()
    what = (
        f"uint16 voxels reach {stored.max()}; values above 32767 are often negative ones that were wrapped."
    )
    return (make_fault("W204", path, what, "export the image again as int16 if it is a CT."),)


def integer_labels(voxels: np.ndarray, *, file: Path | str) -> np.ndarray:
    """The label values as int16; `file` only names the source in errors.

    Interpolating tools store 0.999999 for 1, so values within INTEGER_TOLERANCE are rounded, never truncated.
    """
    if voxels.dtype.kind == "b":
        return voxels.astype(np.int16)
    if voxels.dtype.kind == "f":
        _check_finite_label(voxels, file)
        rounded = np.rint(voxels)
        _check_whole_numbers(voxels, rounded, file)
        voxels = rounded
    limits = np.iinfo(np.int16)
    low, high = voxels.min(), voxels.max()
    if low < limits.min or high > limits.max:
        raise refuse(
            "E304",
            file,
            f"label values run from {low:g} to {high:g}; int16 ends at {limits.min} and {limits.max}.",
            "check that this is the label and not the image.",
        )
    return voxels.astype(np.int16)


def _check_finite_label(voxels: np.ndarray, file: Path | str) -> None:
    is_bad = ~np.isfinite(voxels)
    if is_bad.any():
        found = f"{int(is_bad.sum())} voxels of NaN or infinity, the first at {first_index(is_bad)}"
        raise refuse("E303", file, f"the label holds {found}.", "replace them by the right label value.")


def _check_whole_numbers(voxels: np.ndarray, rounded: np.ndarray, file: Path | str) -> None:
    is_fraction = np.abs(voxels - rounded) > INTEGER_TOLERANCE
    if is_fraction.any():
        first = first_index(is_fraction)
        raise refuse(
            "E303",
            file,
            f"the label holds {int(is_fraction.sum())} values that are no whole numbers, "
            f"the first is {voxels[first]:.6g} at {first}.",
            "resample labels with nearest-neighbour interpolation, and check that this is not the image.",
        )


def first_index(mask: np.ndarray) -> tuple[int, ...]:
    """Index of the first true voxel of `mask`, in file axes."""
    flat = int(np.argmax(mask.ravel(order="F")))
    return tuple(int(i) for i in np.unravel_index(flat, mask.shape, order="F"))


def compact(voxels: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest of uint8, int16 and int32 that holds them, others as float32."""
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32, copy=False)
    low, high = int(voxels.min()), int(voxels.max())
    for name in ("uint8", "int16", "int32"):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return voxels.astype(name, copy=False)
    raise ValueError(f"Voxel values {low}..{high} do not fit into int32; store them as float32.")


def refuse(code: str, path: Path | str, what: str, fix: str) -> VolumeError:
    """The error that says that `path` cannot be used, why, and what to do."""
    return VolumeError(make_fault(code, path, what, fix))
