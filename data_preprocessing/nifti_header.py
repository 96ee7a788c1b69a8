"""NIfTI-1 and NIfTI-2 headers: every field that we rely on is checked before any voxel is allocated.

Layout: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data_preprocessing.faults import VolumeError, make_fault
from utils.contracts import Spacing
from utils.errors import Fault

MAX_VOXEL_BYTES = 64 * 2**30  # more is a damaged header; whether less fits is asked of the free memory
MAX_HEADER_BYTES = 64 * 2**20  # header and extensions together
HEADER_BYTES = 544  # NIfTI-2 header (540) and the extension flag; NIfTI-1 needs fewer
SHEAR_LIMIT = 1e-3  # cosine between two axes that should be perpendicular
FORM_TOLERANCE_MM = 0.1  # how far qform and sform may put the same corner apart
UNIT_TOLERANCE = 1e-5  # by which a float32 quaternion may be longer than one
MIN_SPACING_MM, MAX_SPACING_MM = 1e-5, 1e4  # both excluded; outside, the unit is wrong
LENGTH_UNITS = {0: "unknown", 1: "metres", 2: "millimetres", 3: "micrometres"}

VOXEL_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
REFUSED_TYPES = {
    1: "binary",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}


def _layout(size: int, **fields: tuple[str, int]) -> np.dtype:
    """A structured type of `size` bytes; each field is its format and byte offset."""
    names = list(fields)
    formats = [fields[name][0] for name in names]
    offsets = [fields[name][1] for name in names]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


NIFTI1 = _layout(
    348,
    dim=("(8,)i2", 40),
    datatype=("i2", 70),
    pixdim=("(8,)f4", 76),
    vox_offset=("f4", 108),
    slope=("f4", 112),
    inter=("f4", 116),
    units=("u1", 123),
    qform_code=("i2", 252),
    sform_code=("i2", 254),
    quaternion=("(3,)f4", 256),
    qoffset=("(3,)f4", 268),
    srow=("(3,4)f4", 280),
    magic=("S4", 344),
)
NIFTI2 = _layout(
    540,
    magic=("S4", 4),
    datatype=("i2", 12),
    dim=("(8,)i8", 16),
    pixdim=("(8,)f8", 104),
    vox_offset=("i8", 168),
    slope=("f8", 176),
    inter=("f8", 184),
    qform_code=("i4", 344),
    sform_code=("i4", 348),
    quaternion=("(3,)f8", 352),
    qoffset=("(3,)f8", 376),
    srow=("(3,4)f8", 400),
    units=("i4", 500),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeHeader:
    """What a checked header promises. `shape` is (x, y, z) or (x, y, z, channels), in file axes."""

    shape: tuple[int, ...]
    voxel_type: np.dtype
    voxel_offset: int
    slope: float  # 1 and 0 where the file asks for no scaling
    inter: float
    affine: np.ndarray  # 4 x 4, voxel index to millimetres in RAS
    spacing_mm: Spacing  # (x, y, z)
    qform_code: int
    sform_code: int
    remarks: tuple[Fault, ...] = ()

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels on disk, uncompressed."""
        return math.prod(self.shape) * self.voxel_type.itemsize


def parse_header(head: bytes, path: Path) -> VolumeHeader:
    """The header at the start of the uncompressed bytes `head`; `path` only names the file in errors."""
    fields, order = _fields(head, path)
    shape = _shape(fields, path)
    voxel_type = np.dtype(order + _voxel_format(fields, path))
    voxel_bytes = math.prod(shape) * voxel_type.itemsize
    if voxel_bytes > MAX_VOXEL_BYTES:
        raise _refuse(
            "E207",
            path,
            f"shape {shape} of {voxel_type.name} needs {voxel_bytes} bytes, the limit is {MAX_VOXEL_BYTES}.",
            "check the header, or crop or downsample the volume first.",
        )
    remarks: list[Fault] = []
    affine = _affine(fields, shape, path, remarks)
    slope, inter = float(fields["slope"]), float(fields["inter"])
    is_scaled = math.isfinite(slope) and slope != 0 and math.isfinite(inter)
    return VolumeHeader(
        shape=shape,
        voxel_type=voxel_type,
        voxel_offset=_voxel_offset(fields, path),
        slope=slope if is_scaled else 1.0,
        inter=inter if is_scaled else 0.0,
        affine=affine,
        spacing_mm=spacing_of(affine),
        qform_code=max(int(fields["qform_code"]), 0),
        sform_code=max(int(fields["sform_code"]), 0),
        remarks=tuple(remarks),
    )


def _refuse(code: str, path: Path, what: str, fix: str) -> VolumeError:
    return VolumeError(make_fault(code, path, what, fix))


def _fields(head: bytes, path: Path) -> tuple[Any, str]:
    """The raw fields and the byte order, "<" or ">"."""
    for layout, size in ((NIFTI1, 348), (NIFTI2, 540)):
        for order in ("<", ">"):
            if len(head) >= size and int(np.frombuffer(head, order + "i4", count=1)[0]) == size:
                fields = np.frombuffer(head, layout.newbyteorder(order), count=1)[0]
                _check_magic(bytes(fields["magic"]), path)
                return fields, order
    raise _refuse(
        "E202",
        path,
        f"not a NIfTI volume: it starts with {head[:8]!r}, and no header size of 348 or 540 was found.",
        "convert the image to .nii.gz.",
    )


def _check_magic(magic: bytes, path: Path) -> None:
    if magic in (b"ni1", b"ni2"):
        raise _refuse(
            "E202",
            path,
            "a header of a .hdr/.img pair; its voxels are in a second file.",
            "convert the pair to one .nii.gz file.",
        )
    if magic not in (b"n+1", b"n+2"):
        raise _refuse(
            "E202",
            path,
            f"the magic should be b'n+1' or b'n+2', got {magic!r}.",
            "convert the image to .nii.gz again.",
        )


def _shape(fields: Any, path: Path) -> tuple[int, ...]:
    """(x, y, z) or (x, y, z, channels); trailing axes of length one are dropped."""
    num_axes = int(fields["dim"][0])
    sizes = [int(size) for size in fields["dim"][1:]]
    if not 1 <= num_axes <= 7 or min(sizes[:num_axes]) < 1:
        raise _refuse(
            "E206",
            path,
            f"dim is {[num_axes, *sizes]}; it needs 1 to 7 axes of length 1 or more.",
            "write the file again with a valid header.",
        )
    shape = sizes[:num_axes]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 5 and shape[3] == 1:  # NIfTI keeps vectors on the fifth axis
        del shape[3]
    if not 3 <= len(shape) <= 4:
        raise _refuse(
            "E206",
            path,
            f"the file has {len(shape)} axes {tuple(shape)}; a volume has 3, or 4 with channels.",
            "store a slice as (x, y, 1), and one time point per file.",
        )
    return tuple(shape)


def _voxel_format(fields: Any, path: Path) -> str:
    code = int(fields["datatype"])
    if code not in VOXEL_TYPES:
        raise _refuse(
            "E205",
            path,
            f"voxel type {REFUSED_TYPES.get(code, 'unknown')} (datatype {code}) is not supported.",
            "convert the volume to int16 or float32 with one value per voxel.",
        )
    return VOXEL_TYPES[code]


def _voxel_offset(fields: Any, path: Path) -> int:
    offset = float(fields["vox_offset"])
    smallest = fields.dtype.itemsize + 4
    if not math.isfinite(offset) or not smallest <= offset <= MAX_HEADER_BYTES:
        raise _refuse(
            "E208",
            path,
            f"vox_offset is {offset:g}, it should lie in {smallest}..{MAX_HEADER_BYTES}.",
            "write the file again with a valid header.",
        )
    return int(offset)


def _affine(fields: Any, shape: tuple[int, ...], path: Path, remarks: list[Fault]) -> np.ndarray:
    """The sform if it has a code, else the qform, else the spacing alone; checked."""
    if int(fields["units"]) & 7 in (1, 3):
        unit = LENGTH_UNITS[int(fields["units"]) & 7]
        raise _refuse("E209", path, f"lengths are in {unit}.", "convert the header to millimetres.")
    qform = _qform(fields)
    if int(fields["sform_code"]) > 0:
        affine = np.vstack([fields["srow"].astype(np.float64), [0, 0, 0, 1]])
    else:
        spacing = fields["pixdim"][1:4].astype(np.float64)
        check_spacing(np.abs(spacing), path)
        if (spacing < 0).any():
            what = f"the spacing {_numbers(spacing)} has a negative entry; its absolute value is used."
            remarks.append(make_fault("W203", path, what, "write the file again with positive spacing."))
        affine = qform if int(fields["qform_code"]) > 0 else base_affine(np.abs(spacing), shape)
    check_affine(affine, path)
    if int(fields["sform_code"]) > 0 and int(fields["qform_code"]) > 0:
        remarks.extend(_form_disagreement(affine, qform, shape, path))
    return affine


def base_affine(spacing_mm: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Neither form has a code: x runs to the left, the origin is the centre (the Analyze convention)."""
    scale = np.array([-1.0, 1.0, 1.0]) * spacing_mm
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = -scale * (np.array(shape[:3]) - 1) / 2
    return affine


def _qform(fields: Any) -> np.ndarray:
    """Method 2 of the standard: unit quaternion, spacing, and the handedness in pixdim[0]; may be NaN."""
    b, c, d = fields["quaternion"].astype(np.float64)
    vector = b * b + c * c + d * d
    affine = np.full((4, 4), np.nan)
    affine[3] = [0, 0, 0, 1]
    spacing = np.abs(fields["pixdim"][1:4].astype(np.float64))
    if not math.isfinite(vector) or vector > 1 + UNIT_TOLERANCE or not np.isfinite(spacing).all():
        return affine
    rotation = Rotation.from_quat([b, c, d, math.sqrt(max(0.0, 1 - vector))]).as_matrix()
    handedness = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    affine[:3, :3] = rotation * spacing * [1.0, 1.0, handedness]
    affine[:3, 3] = fields["qoffset"]
    return affine


def _form_disagreement(
    sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], path: Path
) -> list[Fault]:
    distance = corner_distance_mm(sform, qform, shape)
    if distance <= FORM_TOLERANCE_MM:
        return []
    what = f"qform and sform put a corner of the volume {distance:.4g} mm apart; the sform is used."
    return [make_fault("W202", path, what, "write both forms with the affine that is right.")]


def corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two 4 x 4 affines put the same corner of an (x, y, z) volume apart, at most."""
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shape[:3])[:, None] - 1)
    shift = (first - second) @ np.vstack([corners, np.ones(8)])
    return float(np.sqrt((shift[:3] ** 2).sum(axis=0)).max())


def spacing_of(affine: np.ndarray) -> Spacing:
    """Lengths of the columns of a 4 x 4 affine, in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def check_spacing(spacing_mm: np.ndarray, path: Path) -> None:
    """VolumeError unless each entry is a length in millimetres that a scan can have."""
    # Written so that NaN fails too.
    if not ((spacing_mm > MIN_SPACING_MM) & (spacing_mm < MAX_SPACING_MM)).all():
        raise _refuse(
            "E209",
            path,
            f"the spacing is {_numbers(spacing_mm)} mm; each entry should lie between "
            f"{MIN_SPACING_MM:g} and {MAX_SPACING_MM:g} mm.",
            "write the true voxel spacing into the header.",
        )


def check_affine(affine: np.ndarray, path: Path) -> None:
    """VolumeError unless the affine is finite, invertible and without shear, with a usable spacing."""
    if not np.isfinite(affine).all():
        raise _refuse(
            "E210",
            path,
            f"the affine is not finite: {affine[:3].round(3).tolist()}.",
            "write the true orientation into the header.",
        )
    spacing = np.array(spacing_of(affine))
    check_spacing(spacing, path)
    directions = affine[:3, :3] / spacing
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if cosine > SHEAR_LIMIT:
        angle = math.degrees(math.acos(min(cosine, 1.0)))
        kind = "singular" if abs(np.linalg.det(directions)) < SHEAR_LIMIT else "sheared"
        raise _refuse(
            "E210",
            path,
            f"the affine is {kind}: two axes meet at {angle:.2f} degrees, they should meet at 90.",
            "resample the volume (and its label) to a grid with perpendicular axes.",
        )
