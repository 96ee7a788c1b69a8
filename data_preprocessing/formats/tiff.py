"""TIFF <-> volumes, by tifffile: a page is a picture, pages of one size are a volume, as nnU-Net v2 has them.

TIFF has no spacing that programs agree on; that of a volume stands in a JSON file beside it, `<case>.json`
with {"spacing": [z, y, x]} in millimetres.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from data_preprocessing.faults import make_fault
from data_preprocessing.formats.natural import one_slice, picture_volume
from data_preprocessing.nifti_header import check_spacing
from data_preprocessing.stored_bytes import check_plain_file, check_voxel_bytes, cut_off, read_plain_file
from data_preprocessing.volume import (
    LPS_TO_RAS,
    Grid,
    Purpose,
    Volume,
    VolumeSize,
    compact,
    placed_volume,
    refuse,
    with_remarks,
)
from utils.errors import DatasetError
from utils.storage import atomic_file, read_json, write_json

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

SPACING_KEY = "spacing"
CHANNEL_NUMBER = re.compile(r"_\d{4}$")
PICTURE_AXES = ("YX", "YXS", "SYX")
VOLUME_AXES = re.compile("[ZQIT]YX")  # tifffile's letters: depth, unknown, sequence, time
# What a reader of such a loose format meets in damaged files.
DECODER_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
)


def read(path: Path, purpose: Purpose) -> Volume:
    """(x, y, z), or (x, y, 1) with channels where the file is one coloured page."""
    content = read_plain_file(path)
    stored, axes = _decoded(content, path)
    if stored.dtype.kind not in "buif" or stored.dtype.itemsize > 8:
        what = f"voxel type {stored.dtype.name} is not supported."
        raise refuse("E205", path, what, "convert the volume to int16 or float32 with one value per voxel.")
    if axes in PICTURE_AXES:
        if purpose == "label" and stored.ndim == 3:
            what = "the label is a colour picture."
            raise refuse("E205", path, what, "store the label with one whole number per pixel.")
        return picture_volume(np.moveaxis(stored, 0, -1) if axes == "SYX" else stored, path)
    z_mm, y_mm, x_mm = spacing = _spacing(path)
    affine = LPS_TO_RAS @ np.diag([x_mm, y_mm, z_mm, 1.0])
    volume = placed_volume(stored.transpose(2, 1, 0), affine, path, has_position=False)
    if spacing_file(path) is None:
        what = f"there is no {_case_name(path)}.json beside the volume; {spacing} mm are assumed."
        fix = f'write {{"{SPACING_KEY}": [z, y, x]}} in millimetres into that file.'
        return with_remarks(volume, make_fault("W205", path, what, fix))
    return volume


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the headers of the pages."""
    check_plain_file(path)
    file_bytes = path.stat().st_size
    with _series_in(path.open("rb"), file_bytes, path) as series:
        axes, sizes = _axes(series.axes, path, series.shape), tuple(int(size) for size in series.shape)
        array = math.prod(sizes) * np.dtype(series.dtype).itemsize
    affine = LPS_TO_RAS
    if axes not in PICTURE_AXES:
        affine = LPS_TO_RAS @ np.diag([*_spacing(path)[::-1], 1.0])
        sizes = sizes[::-1]
    elif len(sizes) == 2:
        sizes = (sizes[1], sizes[0], 1)
    else:
        rows, columns, colours = sizes if axes == "YXS" else (*sizes[1:], sizes[0])
        sizes = (columns, rows, 1, colours)
    return VolumeSize(shape=sizes, affine=affine, beside=file_bytes + array)


def write(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    """One page per slice, compressed; the spacing of a volume goes into `<name>.json` beside it."""
    import tifffile

    if voxels.ndim != 3:
        what = f"a TIFF volume has one channel, got the shape {voxels.shape}."
        raise refuse("E206", path, what, "write a NIfTI file.")
    is_picture = voxels.shape[2] == 1
    stored = one_slice(voxels, path) if is_picture else compact(voxels).transpose(2, 1, 0)
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        np.ascontiguousarray(stored),
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "YX" if is_picture else "ZYX"},
    )
    if not is_picture:
        write_json(path.with_suffix(".json"), {SPACING_KEY: [float(mm) for mm in grid.spacing_mm[::-1]]})
    with atomic_file(path) as stream:
        stream.write(content.getvalue())


def spacing_file(path: Path) -> Path | None:
    """The JSON file with the spacing of this volume: of its case, or of its own name; None without one."""
    names = (f"{_case_name(path)}.json", f"{path.stem}.json")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _case_name(path: Path) -> str:
    return CHANNEL_NUMBER.sub("", path.stem)


def _spacing(path: Path) -> tuple[float, float, float]:
    """(z, y, x) in mm; 1 where nothing is written."""
    file = spacing_file(path)
    if file is None:
        return 1.0, 1.0, 1.0
    try:
        stored = read_json(file)
    except DatasetError as error:
        raise refuse("E209", path, f"its spacing cannot be read: {error}", "mend that file.") from error
    values: Any = stored.get(SPACING_KEY) if isinstance(stored, dict) else None
    is_triple = isinstance(values, list) and len(values) == 3
    if not is_triple or not all(isinstance(value, int | float) for value in values):
        what = f'{file.name} should hold {{"{SPACING_KEY}": [z, y, x]}}, got {values!r:.80}.'
        raise refuse("E209", path, what, "write the spacing in millimetres.")
    check_spacing(np.array(values, float), file)
    z, y, x = (float(value) for value in values)
    return z, y, x


def _decoded(content: bytes, path: Path) -> tuple[np.ndarray, str]:
    """The pixels of the only series of pages, and a letter per axis."""
    with _series_in(io.BytesIO(content), len(content), path) as series:
        return np.asarray(series.asarray()), _axes(series.axes, path, series.shape)


@contextmanager
def _series_in(stream: BinaryIO, held: int, path: Path) -> Iterator[TiffPageSeries]:
    """The only series of pages of `held` bytes, nothing decoded; what tifffile raises is told of `path`."""
    import tifffile

    try:
        with stream, tifffile.TiffFile(stream) as file:
            yield _only_series(file, held, path)
    except tifffile.TiffFileError as error:
        what = f"not a TIFF file: {error}."
        raise refuse("E202", path, what, "copy the file again, or export it as TIFF again.") from error
    except DECODER_ERRORS as error:
        if "imagecodecs" in str(error):
            what = f"its compression needs a further package ({error})."
            fix = "pip install imagecodecs, or save the file with deflate or no compression."
            raise refuse("E205", path, what, fix) from error
        what = f"the file is damaged ({error})."
        raise refuse("E204", path, what, "copy the file again, or export it as TIFF again.") from error


def _only_series(file: TiffFile, held: int, path: Path) -> TiffPageSeries:
    """Refuses files of several images, too large ones, and pages whose data are missing."""
    if len(file.series) != 1:
        what = f"the file holds {len(file.series)} images, or images of different sizes."
        raise refuse("E206", path, what, "store one picture or one volume per file, without previews.")
    series = file.series[0]
    if series.dtype is None:
        raise refuse("E205", path, "its pixels have no type.", "export the file as TIFF again.")
    check_voxel_bytes(series.shape, max(series.dtype.itemsize, 4), path)
    for page in series.pages:
        offsets: Sequence[int] = page.dataoffsets if page is not None else ()
        counts: Sequence[int] = page.databytecounts if page is not None else ()
        ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
        # tifffile fills what is missing with zeros.
        if page is not None and (not ends or min(counts) < 1 or max(ends) > held):
            raise cut_off(path, max(ends, default=1), held)
    return series


def _axes(axes: str, path: Path, shape: tuple[int, ...]) -> str:
    if axes in PICTURE_AXES or VOLUME_AXES.fullmatch(axes):
        return axes
    what = (
        f"the axes are {axes} of sizes {shape}; it should be one picture, or slices with one value per voxel."
    )
    raise refuse("E206", path, what, "store one channel and one time point per file.")
