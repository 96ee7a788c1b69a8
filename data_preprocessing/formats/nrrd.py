"""NRRD files (3D Slicer's own) <-> voxels and geometry: headers by pynrrd, voxels read strictly.

Format: Teem's "Definition of NRRD File Format". One file holds header and voxels; headers that name a data
file are refused.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.nifti_header import base_affine
from data_preprocessing.stored_bytes import (
    check_voxel_bytes,
    inflate,
    read_plain_file,
    read_start,
    voxels_of,
)
from data_preprocessing.volume import (
    LPS_TO_RAS,
    Grid,
    Purpose,
    Volume,
    VolumeSize,
    compact,
    placed_volume,
    refuse,
    volume_shape,
    with_remarks,
    wrapped_negatives,
)
from utils.storage import atomic_file

MAX_HEADER_BYTES = 2**20  # Slicer's segmentations describe hundreds of segments in far less
COMPRESSION_LEVEL = 1
MILLIMETRES = ("mm", "millimeter", "millimetre", "")
RAW, GZIP = ("raw",), ("gzip", "gz")
TO_RAS = {  # space -> what turns its world into RAS
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
}
VOXEL_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}


def read(path: Path, purpose: Purpose) -> Volume:
    """The voxels as stored; an axis without a direction in space becomes the channels."""
    content = read_plain_file(path)
    header, offset = _header(content, path)
    sizes = tuple(int(size) for size in header["sizes"])
    voxel_type = _voxel_type(header, path)
    channel_axis = _channel_axis(header, sizes, path)
    stored = _stored_voxels(content, offset, header, voxel_type, path)
    if channel_axis is not None:
        stored = np.moveaxis(stored, channel_axis, -1)
    shape = volume_shape(stored.shape, path)
    affine, has_position = _affine(header, channel_axis, shape, path)
    volume = placed_volume(stored.reshape(shape, order="F"), affine, path, has_position=has_position)
    return with_remarks(volume, *(wrapped_negatives(stored, path) if purpose == "image" else ()))


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the header alone."""
    header, _ = _header(read_start(path, MAX_HEADER_BYTES), path)
    sizes = tuple(int(size) for size in header["sizes"])
    needed = check_voxel_bytes(sizes, _voxel_type(header, path).itemsize, path)
    channel_axis = _channel_axis(header, sizes, path)
    spatial = tuple(size for axis, size in enumerate(sizes) if axis != channel_axis)
    channels = () if channel_axis is None else (sizes[channel_axis],)
    shape = volume_shape((*spatial, *channels), path)
    affine, _ = _affine(header, channel_axis, shape, path)
    is_packed = str(header["encoding"]).lower() in GZIP
    file_bytes = path.stat().st_size
    # What follows the header is copied before it is unpacked.
    return VolumeSize(shape=shape, affine=affine, beside=2 * file_bytes + needed if is_packed else file_bytes)


def write(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    """Compressed, in LPS as 3D Slicer writes it; channels lie on the first axis of the file."""
    import nrrd

    stored = compact(voxels)
    header: dict[str, Any] = {"encoding": "gzip", "kinds": ["domain"] * 3}
    if grid.has_position:
        lps = LPS_TO_RAS @ grid.affine
        header["space"] = "left-posterior-superior"
        header["space directions"] = lps[:3, :3].T
        header["space origin"] = lps[:3, 3]
    else:
        header["spacings"] = np.array(grid.spacing_mm)
    if stored.ndim == 4:
        stored = np.moveaxis(stored, -1, 0)
        header["kinds"] = ["list", *header["kinds"]]
        for key in ("space directions", "spacings"):
            if key in header:
                absent = np.full((1, *header[key].shape[1:]), np.nan)
                header[key] = np.concatenate([absent, header[key]])
    content = io.BytesIO()
    nrrd.write(content, stored, header, compression_level=COMPRESSION_LEVEL, index_order="F")
    with atomic_file(path) as stream:
        stream.write(content.getvalue())


def _header(content: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """The parsed fields, and the offset of what follows the blank line."""
    import nrrd

    if not content.startswith(b"NRRD000"):
        what = f"not a NRRD file: it starts with {content[:8]!r}, not with b'NRRD000'."
        raise refuse("E202", path, what, "export the volume as .nrrd again.")
    ends = [
        (start, start + len(mark))
        for mark in (b"\n\n", b"\n\r\n")
        if (start := content.find(mark, 0, MAX_HEADER_BYTES)) >= 0
    ]
    if not ends:
        what = "no blank line ends the header; the file is cut off or damaged."
        raise refuse("E202", path, what, "copy the file again, or export the volume as .nrrd again.")
    start, offset = min(ends)
    try:
        header = dict(nrrd.read_header(content[:start].splitlines()))
    except (nrrd.NRRDError, ValueError, IndexError) as error:
        what = f"the header cannot be understood: {error}"
        raise refuse("E202", path, what, "export the volume as .nrrd again.") from error
    _check_fields(header, path)
    return header, offset


def _check_fields(header: dict[str, Any], path: Path) -> None:
    missing = [key for key in ("dimension", "sizes", "type", "encoding") if key not in header]
    per_axis = [header[key] for key in ("sizes", "kinds", "spacings") if key in header]
    if missing or any(np.size(values) != header["dimension"] for values in per_axis):
        what = f"the header lacks {missing or 'a size, kind or spacing for each dimension'}."
        raise refuse("E202", path, what, "export the volume as .nrrd again.")
    if "data file" in header or "datafile" in header:
        what = "the voxels lie in another file."
        raise refuse("E202", path, what, "export the volume as one .nrrd file with its voxels inside.")
    if not 3 <= header["dimension"] <= 4:
        what = f"the file has {header['dimension']} axes; a volume has 3, or 4 with channels."
        raise refuse("E206", path, what, "store a slice as (x, y, 1), and one time point per file.")
    skipped = (header.get("line skip", header.get("lineskip", 0)), _byte_skip(header))
    if skipped[0] != 0 or skipped[1] not in (0, -1):
        what = f"the header skips {skipped[0]} lines and {skipped[1]} bytes before the voxels."
        raise refuse("E208", path, what, "export the volume as .nrrd without such gaps.")
    units = [str(unit).strip().strip('"').lower() for unit in header.get("space units", ())]
    if any(unit not in MILLIMETRES for unit in units):
        raise refuse("E209", path, f"lengths are in {units}.", "convert the header to millimetres.")


def _byte_skip(header: dict[str, Any]) -> int:
    return int(header.get("byte skip", header.get("byteskip", 0)))


def _voxel_type(header: dict[str, Any], path: Path) -> np.dtype:
    kind = next((kind for kind, names in VOXEL_TYPES.items() if header["type"] in names), None)
    if kind is None:
        what = f"voxel type {header['type']!r} is not supported."
        raise refuse("E205", path, what, "convert the volume to short or float, one value per voxel.")
    order = ">" if header.get("endian", "little") == "big" else "<"
    return np.dtype(order + kind)


def _stored_voxels(
    content: bytes, offset: int, header: dict[str, Any], voxel_type: np.dtype, path: Path
) -> np.ndarray:
    sizes = tuple(int(size) for size in header["sizes"])
    needed = check_voxel_bytes(sizes, voxel_type.itemsize, path)
    encoding = str(header["encoding"]).lower()
    if encoding in GZIP:
        return voxels_of(inflate(content[offset:], needed, path), voxel_type, sizes, path)
    if encoding not in RAW:
        what = f"the encoding {encoding!r} is not supported."
        raise refuse("E205", path, what, "export the volume with the encoding gzip or raw.")
    start = max(len(content) - needed, offset) if _byte_skip(header) == -1 else offset
    return voxels_of(memoryview(content)[start:], voxel_type, sizes, path)


def _channel_axis(header: dict[str, Any], sizes: tuple[int, ...], path: Path) -> int | None:
    """The axis of a 4-D file that has no direction in space, no spacing or no kind of a domain."""
    if len(sizes) == 3:
        return None
    if "space directions" in header:
        lengths = np.linalg.norm(_directions(header, len(sizes), path), axis=1)
        without = np.flatnonzero(~np.isfinite(lengths))
    elif "kinds" in header:
        without = np.flatnonzero([kind not in ("domain", "space") for kind in header["kinds"]])
    else:
        without = np.flatnonzero(~np.isfinite(np.asarray(header.get("spacings", np.zeros(4)), float)))
    if len(without) != 1:
        what = f"of the 4 axes of sizes {sizes}, {len(without)} are no direction in space, it should be one."
        raise refuse("E206", path, what, "mark the axis of the channels with `none` in space directions.")
    return int(without[0])


def _directions(header: dict[str, Any], num_axes: int, path: Path) -> np.ndarray:
    """(axes, 3) the step of each axis in the file's world; NaN for an axis outside it.

    ITK gives a 4-D file a world of 4 dimensions, of which the first three are LPS.
    """
    rows = [
        np.full(3, np.nan) if row is None else np.asarray(row, float) for row in header["space directions"]
    ]
    if all(row.shape == (4,) for row in rows):
        rows = [row[:3] if row[:3].any() else np.full(3, np.nan) for row in rows]
    if len(rows) != num_axes or any(row.shape != (3,) or np.isinf(row).any() for row in rows):
        what = f"space directions should hold {num_axes} vectors of 3 numbers, or none."
        raise refuse("E210", path, what, "write the true orientation into the header.")
    return np.array(rows)


def _affine(
    header: dict[str, Any], channel_axis: int | None, shape: tuple[int, ...], path: Path
) -> tuple[np.ndarray, bool]:
    """Voxel index to RAS millimetres, and whether the file says where in the world that is.

    Without a space, or in one that does not say where the patient's right is, only the spacing counts.
    """
    num_axes = int(header["dimension"])
    kept = [axis for axis in range(num_axes) if axis != channel_axis]
    space = str(header.get("space", "")).lower().removesuffix("-time")
    if "space directions" not in header:
        spacings = np.asarray(header.get("spacings", np.ones(num_axes)), float)
        return base_affine(np.abs(spacings[kept]), shape), False
    directions = _directions(header, num_axes, path)[kept]
    if int(header.get("space dimension", 3)) == 4:
        space = "lps"
    if space not in TO_RAS:
        return base_affine(np.linalg.norm(directions, axis=1), shape), False
    affine = np.eye(4)
    affine[:3, :3] = directions.T
    affine[:3, 3] = _origin(header, path)
    return TO_RAS[space] @ affine, True


def _origin(header: dict[str, Any], path: Path) -> np.ndarray:
    origin = np.asarray(header.get("space origin", np.zeros(3)), float)
    if origin.ndim != 1 or len(origin) not in (3, 4) or not np.isfinite(origin).all():
        what = f"space origin should hold 3 numbers, got {origin.tolist()}."
        raise refuse("E210", path, what, "write the true position into the header.")
    return origin[:3]
