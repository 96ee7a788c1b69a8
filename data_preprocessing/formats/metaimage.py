"""MetaImage files (.mha, or .mhd with its voxels beside it) <-> voxels and geometry.

No small library reads them, and ITK's reader fills what a cut-off file lacks with zeros; the header is a
few lines of text. Format: MetaIO's documentation of MetaImage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from isal import isal_zlib

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

MAX_HEADER_BYTES = 2**16
COMPRESSION_LEVEL = 1
ZLIB_WINDOW = 15
LAST_KEY = "ElementDataFile"
VOXEL_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
WRITTEN_TYPES = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "int32": "MET_INT", "float32": "MET_FLOAT"}


def read(path: Path, purpose: Purpose) -> Volume:
    """The voxels as stored; the fourth axis of a 4-D file, or the values of a voxel, become the channels."""
    content = read_plain_file(path)
    fields, offset = _fields(content, path)
    sizes, num_values = _sizes(fields, path), _num_values(fields, path)
    shape = sizes if num_values == 1 else (num_values, *sizes)
    voxel_type = _voxel_type(fields, path)
    stored = _stored_voxels(content[offset:], fields, voxel_type, shape, path)
    if num_values > 1:
        stored = np.moveaxis(stored, 0, -1)
    voxels = stored.reshape(volume_shape(stored.shape, path), order="F")
    volume = placed_volume(voxels, _affine(fields, len(sizes), path), path, has_position=True)
    return with_remarks(volume, *(wrapped_negatives(stored, path) if purpose == "image" else ()))


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the header, and by the size of the file that holds the voxels."""
    fields, _ = _fields(read_start(path, MAX_HEADER_BYTES), path)
    sizes, num_values = _sizes(fields, path), _num_values(fields, path)
    shape = volume_shape(sizes if num_values == 1 else (*sizes, num_values), path)
    needed = check_voxel_bytes(shape, _voxel_type(fields, path).itemsize, path)
    beside = _data_file(fields, path)
    held = (beside or path).stat().st_size * (1 if beside else 2)  # what follows a header is copied first
    unpacked = needed if _is_true(fields, "CompressedData") else 0
    return VolumeSize(shape=shape, affine=_affine(fields, len(sizes), path), beside=held + unpacked)


def write(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    """Compressed, in LPS; a .mhd file has its voxels in a .zraw file beside it, which is written first.

    A grid without a position is written as if its affine were one.
    """
    stored = compact(voxels)
    data = isal_zlib.compress(stored.tobytes(order="F"), COMPRESSION_LEVEL, ZLIB_WINDOW)
    is_apart = path.name.lower().endswith(".mhd")
    beside = path.with_suffix(".zraw")
    text = _header_text(stored, grid, len(data), beside.name if is_apart else "LOCAL")
    if is_apart:
        with atomic_file(beside) as stream:
            stream.write(data)
    with atomic_file(path) as stream:
        stream.write(text.encode("ascii") + (b"" if is_apart else data))


def data_file(path: Path) -> Path | None:
    """The file that holds the voxels of a .mhd header, or None where they follow it; refuses other places."""
    fields, _ = _fields(read_plain_file(path), path)
    return _data_file(fields, path)


def _sizes(fields: Mapping[str, str], path: Path) -> tuple[int, ...]:
    """The length of each of 3 or 4 axes; of 4 only where a voxel has one value."""
    num_axes = _whole(fields, "NDims", None, path)
    sizes = tuple(int(size) for size in _numbers(fields, "DimSize", num_axes, path))
    if not 3 <= num_axes <= 4:
        what = f"the file has {num_axes} axes; a volume has 3, or 4 with channels."
        raise refuse("E206", path, what, "store a slice as (x, y, 1), and one time point per file.")
    if num_axes == 4 and (num_values := _num_values(fields, path)) > 1:
        what = f"the file has 4 axes and {num_values} values per voxel."
        raise refuse("E206", path, what, "store one channel per file.")
    return sizes


def _num_values(fields: Mapping[str, str], path: Path) -> int:
    return _whole(fields, "ElementNumberOfChannels", "1", path)


def _header_text(stored: np.ndarray, grid: Grid, num_bytes: int, place: str) -> str:
    lps = LPS_TO_RAS @ grid.affine
    num_axes = stored.ndim
    directions, origin = np.eye(num_axes), np.zeros(num_axes)
    directions[:3, :3] = lps[:3, :3] / np.array(grid.spacing_mm)
    origin[:3] = lps[:3, 3]
    spacing = (*grid.spacing_mm, *(1.0,) * (num_axes - 3))
    lines = {
        "ObjectType": "Image",
        "NDims": str(num_axes),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(num_bytes),
        "TransformMatrix": _text(directions.T.ravel()),
        "Offset": _text(origin),
        "CenterOfRotation": _text(np.zeros(num_axes)),
        "ElementSpacing": _text(np.array(spacing)),
        "DimSize": " ".join(str(size) for size in stored.shape),
        "ElementType": WRITTEN_TYPES[stored.dtype.name],
        LAST_KEY: place,
    }
    return "".join(f"{key} = {value}\n" for key, value in lines.items())


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in values)


def _fields(content: bytes, path: Path) -> tuple[dict[str, str], int]:
    """The header's `Key = Value` lines and the offset behind the last of them."""
    fields: dict[str, str] = {}
    offset = 0
    while LAST_KEY not in fields:
        end = content.find(b"\n", offset, MAX_HEADER_BYTES)
        end = len(content) if end < 0 and len(content) < MAX_HEADER_BYTES else end
        key, sign, value = content[offset:end].decode("ascii", "replace").partition("=")
        if end < 0 or offset >= len(content) or not sign:
            what = (
                f"the header cannot be understood: no {LAST_KEY} after {len(fields)} lines of `Key = Value`."
            )
            raise refuse("E202", path, what, "export the volume as .mha again.")
        if key.strip() in fields:
            what = f"the header gives {key.strip()!r} twice."
            raise refuse("E202", path, what, "export the volume as .mha again.")
        fields[key.strip()] = value.strip()
        offset = end + 1
    if fields.get("ObjectType", "Image") != "Image":
        what = f"the file holds a {fields['ObjectType']}, not an image."
        raise refuse("E202", path, what, "export the volume as .mha again.")
    return fields, offset


def _first(fields: Mapping[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _is_true(fields: Mapping[str, str], *names: str) -> bool:
    return (_first(fields, *names) or "False").lower() in ("true", "t", "1")


def _whole(fields: Mapping[str, str], name: str, default: str | None, path: Path) -> int:
    text = fields.get(name, default)
    if text is None or not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= 10**6:
        what = f"{name} should be a whole number from 1 on, got {text!r}."
        raise refuse("E202", path, what, "write the file again with a valid header.")
    return int(text[:9])


def _numbers(fields: Mapping[str, str], names: str, count: int, path: Path) -> np.ndarray:
    """`count` numbers; `names` are the spellings of the key, separated by blanks."""
    text = _first(fields, *names.split())
    try:
        values = np.array([float(word) for word in (text or "").split()])
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        what = f"{names.split()[0]} should hold {count} numbers, got {(text or 'nothing')[:80]!r}."
        raise refuse("E202", path, what, "write the file again with a valid header.")
    return values


def _voxel_type(fields: Mapping[str, str], path: Path) -> np.dtype:
    name = fields.get("ElementType", "nothing")
    if name not in VOXEL_TYPES or not _is_true(fields, "BinaryData"):
        what = f"ElementType {name} with BinaryData {fields.get('BinaryData', 'False')} is not supported."
        raise refuse("E205", path, what, "convert the volume to binary MET_SHORT or MET_FLOAT.")
    is_big = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype((">" if is_big else "<") + VOXEL_TYPES[name])


def _data_file(fields: Mapping[str, str], path: Path) -> Path | None:
    place = fields[LAST_KEY]
    if place.upper() == "LOCAL":
        return None
    # A name with a place in it, a list or a pattern could point anywhere on the machine.
    is_name = Path(place).name == place and place not in ("", "..") and place.isprintable()
    if not is_name or place.upper().startswith("LIST") or "%" in place:
        what = f"{LAST_KEY} is {place[:120]!r}; it should be LOCAL or one file name in the same folder."
        raise refuse("E110", path, what, "export the volume as one .mha file.")
    return path.with_name(place)


def _stored_voxels(
    behind: bytes, fields: Mapping[str, str], voxel_type: np.dtype, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    needed = check_voxel_bytes(shape, voxel_type.itemsize, path)
    beside = _data_file(fields, path)
    data = behind if beside is None else read_plain_file(beside)
    place = beside or path
    if _is_true(fields, "CompressedData"):
        return voxels_of(inflate(data, needed, place), voxel_type, shape, place)
    skipped = int(_numbers({"HeaderSize": "0"} | dict(fields), "HeaderSize", 1, path)[0])
    # -1 says that the voxels are the last bytes of the file.
    start = max(len(data) - needed, 0) if skipped == -1 else max(skipped, 0)
    return voxels_of(memoryview(data)[start:], voxel_type, shape, place)


def _affine(fields: Mapping[str, str], num_axes: int, path: Path) -> np.ndarray:
    """Voxel index to RAS millimetres; MetaImage's world is LPS, its matrix lists axis after axis."""
    identity = {"TransformMatrix": _text(np.eye(num_axes).ravel()), "Offset": _text(np.zeros(num_axes))}
    known = identity | dict(fields)
    if "TransformMatrix" not in fields and (turned := _first(fields, "Rotation", "Orientation")):
        known["TransformMatrix"] = turned
    if "Offset" not in fields and (moved := _first(fields, "Position", "Origin")):
        known["Offset"] = moved
    axes = _numbers(known, "TransformMatrix", num_axes**2, path).reshape(num_axes, num_axes)
    spacing = np.ones(num_axes)
    if "ElementSpacing" in fields or "ElementSize" in fields:
        spacing = _numbers(fields, "ElementSpacing ElementSize", num_axes, path)
    affine = np.eye(4)
    affine[:3, :3] = axes.T[:3, :3] * np.abs(spacing[:3])
    affine[:3, 3] = _numbers(known, "Offset", num_axes, path)[:3]
    return LPS_TO_RAS @ affine
