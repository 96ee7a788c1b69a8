"""NIfTI files <-> voxels, affine and spacing: read to the last byte, written whole or not at all."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError
from nibabel.orientations import aff2axcodes

from data_preprocessing.faults import VolumeError, make_fault
from data_preprocessing.nifti_header import (
    HEADER_BYTES,
    MAX_HEADER_BYTES,
    MAX_VOXEL_BYTES,
    VolumeHeader,
    parse_header,
)
from utils.contracts import Spacing
from utils.errors import Fault
from utils.storage import atomic_file

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW = 31  # zlib's number for: 32 KiB window, gzip header, checksum verified
TRAILING_SLACK = 2**20  # bytes that may follow the voxels
HEAD_OF_FILE = 2**17  # compressed bytes that surely hold the header
COMPRESSION_LEVEL = 1  # isal: as small as gzip 6 on CT, 20 times as fast
INTEGER_TOLERANCE = 1e-3  # a label may be this far from an integer
SMALLEST_HEADER = 348  # bytes of a NIfTI-1 header
FOREIGN_CONTENT = {
    b"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull`",
    b"<!doctype": "an HTML page; the download failed",
    b"<html": "an HTML page; the download failed",
    b"<?xml": "an XML text; the download failed",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """One file as it is stored: (x, y, z) or (x, y, z, channels), in file axes, first axis fastest."""

    voxels: np.ndarray
    affine: np.ndarray  # 4 x 4, voxel index to millimetres in RAS
    spacing_mm: Spacing  # (x, y, z)
    qform_code: int
    sform_code: int
    orientation: str  # where each axis runs to, for example "LPS"
    remarks: tuple[Fault, ...] = ()  # warnings: what the reader put up with


def axis_codes(affine: np.ndarray) -> str:
    """Where each voxel axis runs to, for example "LPS"; the nearest axes if the scan is oblique."""
    return "".join(str(code) for code in aff2axcodes(affine))


def read_header(path: Path) -> VolumeHeader:
    """The checked header of a NIfTI file; the voxels are neither read nor checked."""
    _check_plain_file(path)
    with _errors_named(path), path.open("rb") as stream:
        stored = stream.read(HEAD_OF_FILE)
    return parse_header(_header_bytes(stored, path), path)


def read_volume(path: Path) -> Volume:
    """An image as float32, scaled as the header asks.

    Raises VolumeError for everything that would give wrong voxels or no geometry: a file cut off or damaged
    (checksum), colours, sheared axes, ... NaN and infinity are left for the caller to judge.
    """
    header, stored = _read(path)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as infinity
        voxels = _scaled(stored, header).astype(np.float32)
    return _volume(header, voxels, _wrapped_negatives(stored, path))


def read_label_volume(path: Path) -> Volume:
    """A label volume as int16; values within 0.001 of an integer are rounded, other fractions refused."""
    header, stored = _read(path)
    return _volume(header, integer_labels(_scaled(stored, header), file=path))


def _scaled(stored: np.ndarray, header: VolumeHeader) -> np.ndarray:
    """The stored numbers themselves where there is no scaling, else float64."""
    if header.slope == 1 and header.inter == 0:
        return stored
    return stored.astype(np.float64) * header.slope + header.inter


def _wrapped_negatives(stored: np.ndarray, path: Path) -> tuple[Fault, ...]:
    """Scanners deliver 12 to 15 bits; a larger unsigned value is most often a wrapped negative one."""
    if stored.dtype.name != "uint16" or stored.max() <= np.iinfo(np.int16).max:
        return ()
    what = (
        f"uint16 voxels reach {stored.max()}; values above 32767 are often negative ones that were wrapped."
    )
    return (make_fault("W204", path, what, "export the image again as int16 if it is a CT."),)


def _volume(header: VolumeHeader, voxels: np.ndarray, remarks: tuple[Fault, ...] = ()) -> Volume:
    return Volume(
        voxels=voxels,
        affine=header.affine,
        spacing_mm=header.spacing_mm,
        qform_code=header.qform_code,
        sform_code=header.sform_code,
        orientation=axis_codes(header.affine),
        remarks=(*header.remarks, *remarks),
    )


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
        raise _refuse(
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
        raise _refuse("E303", file, f"the label holds {found}.", "replace them by the right label value.")


def _check_whole_numbers(voxels: np.ndarray, rounded: np.ndarray, file: Path | str) -> None:
    is_fraction = np.abs(voxels - rounded) > INTEGER_TOLERANCE
    if is_fraction.any():
        first = first_index(is_fraction)
        raise _refuse(
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


def write_volume(
    path: Path,
    voxels: np.ndarray,
    *,
    affine: np.ndarray,
    qform_code: int,
    sform_code: int,
    spacing_mm: Spacing,
) -> None:
    """Write (x, y, z) or (x, y, z, channels) voxels under a fresh header; reading them back is exact.

    Whole numbers take the smallest of uint8, int16 and int32 that holds them (a mask is uint8), others
    float32.
    With both codes 0 the file keeps no orientation, only `spacing_mm`. Compressed if the name ends with .gz.
    """
    compact = _compact(voxels)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(compact.dtype)
    header.set_data_shape(compact.shape)
    header.set_zooms((*spacing_mm, *(1.0,) * (compact.ndim - 3)))
    header.set_xyzt_units("mm")
    if qform_code or sform_code:
        header.set_qform(affine, code=qform_code)
        header.set_sform(affine, code=sform_code)
    content = nibabel.Nifti1Image(compact, None, header).to_bytes()
    if path.name.endswith(".gz"):
        content = igzip.compress(content, COMPRESSION_LEVEL, mtime=0)
    with atomic_file(path) as stream:
        stream.write(content)


def _compact(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32, copy=False)
    low, high = int(voxels.min()), int(voxels.max())
    for name in ("uint8", "int16", "int32"):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return voxels.astype(name, copy=False)
    raise ValueError(f"Voxel values {low}..{high} do not fit into int32; store them as float32.")


def _read(path: Path) -> tuple[VolumeHeader, np.ndarray]:
    """The checked header and the stored voxels, every byte of the file read and its checksum verified."""
    _check_plain_file(path)
    with _errors_named(path):
        content = path.read_bytes()
    header = parse_header(_header_bytes(content, path), path)
    needed = header.voxel_offset + header.voxel_bytes
    is_compressed = content.startswith(GZIP_MAGIC)
    if is_compressed:
        content = _inflate(content, needed, path)
    _check_length(len(content), needed, path)
    voxels = np.frombuffer(
        content, header.voxel_type, count=math.prod(header.shape), offset=header.voxel_offset
    )
    if is_compressed != path.name.endswith(".gz"):
        state = "compressed" if is_compressed else "not compressed"
        what = f"the content is {state}, against the name; it was read anyway."
        remark = make_fault("W201", path, what, "rename the file: .nii.gz is compressed, .nii is not.")
        header = replace(header, remarks=(*header.remarks, remark))
    return header, voxels.reshape(header.shape, order="F")


def _check_length(held: int, needed: int, path: Path) -> None:
    if held < needed:
        raise _cut_off(path, needed, held)
    if held > needed + TRAILING_SLACK:
        raise _refuse(
            "E207",
            path,
            f"more than {TRAILING_SLACK} bytes follow the {needed} bytes that the header promises.",
            "check the dimensions and the voxel type in the header.",
        )


def _cut_off(path: Path, needed: int, held: int) -> VolumeError:
    return _refuse(
        "E203",
        path,
        f"the file is cut off: the header promises {needed} bytes, the file holds {held}.",
        "copy the file again; for a .gz file `gzip -t FILE` must succeed.",
    )


def _inflate(content: bytes, needed: int, path: Path) -> bytes:
    """All gzip members, each to the end of its stream, so that cut-off and checksum are seen.

    Stops above `needed` plus the slack: a small file that unpacks to terabytes costs no memory.
    """
    limit = needed + TRAILING_SLACK + 1
    parts: list[bytes] = []
    held = 0
    while content.startswith(GZIP_MAGIC) and held < limit:
        stream = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
        with _errors_named(path):
            parts.append(stream.decompress(content, limit - held))
        held += len(parts[-1])
        if not stream.eof and held < limit:
            raise _cut_off(path, needed, held)
        content = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _header_bytes(content: bytes, path: Path) -> bytes:
    """The first uncompressed bytes; refuses what is no image file at all."""
    start = content[:256].lstrip().lower()
    for mark, meaning in FOREIGN_CONTENT.items():
        if start.startswith(mark):
            raise _refuse("E202", path, f"the file is {meaning}.", "fetch the image itself.")
    head = content[:HEADER_BYTES]
    if content.startswith(GZIP_MAGIC):
        with _errors_named(path):
            stream = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
            head = stream.decompress(content[:HEAD_OF_FILE], HEADER_BYTES)
    if len(head) < SMALLEST_HEADER:
        raise _cut_off(path, SMALLEST_HEADER, len(head))
    return head


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turns what the system or the decompressor says into an error that names the file."""
    try:
        yield
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}."
        raise _refuse("E201", path, what, "check the path and its permissions.") from error
    except IsalError as error:  # pyright: ignore[reportGeneralTypeIssues]  its stub names no class
        raise _refuse(
            "E204",
            path,
            f"the compressed data are damaged ({error}).",
            "copy or download the file again; `gzip -t FILE` must succeed.",
        ) from error


def _check_plain_file(path: Path) -> None:
    """Refuses folders, broken links, devices and pipes (a pipe would hang), empty and oversized files."""
    with _errors_named(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _refuse("E201", path, "this is not a plain file.", "give the path of a NIfTI file.")
    if status.st_size == 0:
        raise _refuse("E201", path, "the file is empty (0 bytes).", "copy the file again.")
    if status.st_size > MAX_VOXEL_BYTES + MAX_HEADER_BYTES:
        what = f"the file has {status.st_size} bytes, the limit is {MAX_VOXEL_BYTES + MAX_HEADER_BYTES}."
        raise _refuse("E207", path, what, "crop or downsample the volume first.")


def _refuse(code: str, path: Path | str, what: str, fix: str) -> VolumeError:
    return VolumeError(make_fault(code, path, what, fix))
