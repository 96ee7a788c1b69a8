"""A DICOM series -> voxels and geometry: slices sorted by position, stored numbers as intensities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_preprocessing.formats.dicom_headers import (
    PARSER_ERRORS,
    PIXEL_TAGS,
    Frame,
    frames_of,
    is_dicom,
    is_image,
    read_dicom,
    read_header,
)
from data_preprocessing.formats.dicom_stack import stack
from data_preprocessing.stored_bytes import check_voxel_bytes
from data_preprocessing.volume import Purpose, Volume, VolumeSize, placed_volume, refuse

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomStack", "decode", "is_dicom", "measure", "open_files", "open_series", "read", "read_stack"]

FRAME_BYTES = 2  # per pixel of a decoded frame; few have more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DicomStack:
    """The slices of one series by position, and where they lie; no pixel is read yet."""

    frames: tuple[Frame, ...]
    affine: np.ndarray  # 4 x 4, (column, row, slice) to millimetres in RAS

    @property
    def shape(self) -> tuple[int, int, int]:
        """(x, y, z): columns, rows, slices."""
        rows, columns = self.frames[0].shape
        return columns, rows, len(self.frames)


def read(path: Path, purpose: Purpose) -> Volume:
    """The series that `path`, one of its files, belongs to; its other slices lie in the same folder."""
    if purpose == "label":
        what = "a DICOM file is no label volume."
        raise refuse("E205", path, what, "make NIfTI masks of it with scripts/convert_dicom.py.")
    return read_stack(open_series(path))


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the headers of the whole series."""
    opened = open_series(path)
    columns, rows, slices = opened.shape
    files = Counter(frame.file for frame in opened.frames)
    largest = max(file.stat().st_size + FRAME_BYTES * columns * rows * count for file, count in files.items())
    volume = columns * rows * slices * np.dtype(np.float32).itemsize  # filled slice by slice, then copied
    return VolumeSize(shape=opened.shape, affine=opened.affine, beside=largest + volume)


def open_series(path: Path) -> DicomStack:
    """The headers of the series of `path`, checked."""
    header = read_header(path)
    if not is_image(header):
        what = f"the DICOM object ({header.get('Modality', 'no modality')}) holds no image of the patient."
        raise refuse("E211", path, what, "give a file of a CT or MR series.")
    uid = header.get("SeriesInstanceUID", "")
    siblings = [file for file in sorted(path.parent.iterdir()) if file.is_file() and is_dicom(file)]
    return open_files([file for file in siblings if file == path or _series_uid(file) == uid])


def open_files(files: Sequence[Path]) -> DicomStack:
    """The checked stack of these files of one series."""
    frames = [frame for file in files for frame in frames_of(read_header(file), file)]
    ordered, affine = stack(frames)
    opened = DicomStack(frames=tuple(ordered), affine=affine)
    check_voxel_bytes(opened.shape, np.dtype(np.float32).itemsize, files[0])
    return opened


def read_stack(opened: DicomStack) -> Volume:
    """The intensities as float32 (x, y, z): columns, rows, slices."""
    columns, rows, slices = opened.shape
    voxels = np.empty((slices, rows, columns), np.float32)
    by_file = sorted(enumerate(opened.frames), key=lambda item: str(item[1].file))
    for path, members in groupby(by_file, key=lambda item: item[1].file):
        decoded = _decode(path, (rows, columns))
        for place, frame in members:
            voxels[place] = decoded[frame.index].astype(np.float64) * frame.slope + frame.intercept
    path = opened.frames[0].file
    return placed_volume(voxels.transpose(2, 1, 0), opened.affine, path, has_position=True)


def _series_uid(path: Path) -> str:
    return str(read_dicom(path, tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", ""))


def _decode(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(frames, rows, columns) as stored."""
    return decode(read_dicom(path, tags=PIXEL_TAGS), path, shape)


def decode(data: Dataset, path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(frames, rows, columns) of a data set that was read with its pixels, as stored."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = UID(str(data.file_meta.get("TransferSyntaxUID", "")))
    try:
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            what = f"no installed package decodes the transfer syntax {syntax.name}."
            fix = "pip install python-gdcm, or convert the series with `gdcmconv --raw`."
            raise refuse("E212", path, what, fix)
        decoded = np.asarray(data.pixel_array)
    except PARSER_ERRORS as error:
        what = f"the pixels ({syntax.name or 'no transfer syntax'}) cannot be decoded: {error}"
        raise refuse("E212", path, what, "copy or export the file again, uncompressed if need be.") from error
    frames = decoded[None] if decoded.ndim == 2 else decoded
    if frames.ndim != 3 or frames.shape[1:] != shape:
        what = f"the pixels have the shape {decoded.shape}, the header says {shape}."
        raise refuse("E212", path, what, "export the file again.")
    return frames
