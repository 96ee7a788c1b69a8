"""Image files <-> voxels, affine and spacing, in every format that is read; the ending decides which.

A DICOM series is named by one of its files, whatever its ending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_preprocessing.case_files import NIFTI_ENDINGS, SCAN_ENDINGS, split_ending
from data_preprocessing.faults import VolumeError
from data_preprocessing.formats import dicom, metaimage, natural, nifti, nrrd, tiff
from data_preprocessing.formats.nifti import read_header
from data_preprocessing.volume import (
    Grid,
    HasGrid,
    Purpose,
    Volume,
    VolumeSize,
    axis_codes,
    first_index,
    integer_labels,
    refuse,
)
from utils.contracts import Spacing

__all__ = [
    "Volume",
    "axis_codes",
    "companion_files",
    "first_index",
    "integer_labels",
    "mask_ending",
    "measure_volume",
    "read_header",
    "read_label_volume",
    "read_volume",
    "write_volume",
]

Reader = Callable[[Path, Purpose], Volume]
Measure = Callable[[Path], VolumeSize]
Writer = Callable[[Path, np.ndarray, Grid], None]

READERS: dict[str, Reader] = {
    ".nrrd": nrrd.read,
    ".mha": metaimage.read,
    ".mhd": metaimage.read,
    ".png": natural.read,
    ".bmp": natural.read,
    ".jpg": natural.read,
    ".jpeg": natural.read,
    ".tif": tiff.read,
    ".tiff": tiff.read,
}
MEASURES: dict[str, Measure] = {
    ".nrrd": nrrd.measure,
    ".mha": metaimage.measure,
    ".mhd": metaimage.measure,
    ".png": natural.measure,
    ".bmp": natural.measure,
    ".jpg": natural.measure,
    ".jpeg": natural.measure,
    ".tif": tiff.measure,
    ".tiff": tiff.measure,
}
WRITERS: dict[str, Writer] = {
    ".nrrd": nrrd.write,
    ".mha": metaimage.write,
    ".mhd": metaimage.write,
    ".png": natural.write,
    ".bmp": natural.write,
    ".tif": tiff.write,
    ".tiff": tiff.write,
}
LOSSY_ENDINGS = (".jpg", ".jpeg")


def read_volume(path: Path) -> Volume:
    """An image as float32, scaled as the header asks.

    Raises VolumeError for everything that would give wrong voxels or no geometry: a file cut off or damaged
    (checksum), sheared axes, missing slices, ... NaN and infinity are left for the caller to judge.
    """
    with _enough_memory(path), np.errstate(over="ignore", invalid="ignore"):  # the caller sees infinity
        volume = _reader_of(path)(path, "image")
        return replace(volume, voxels=volume.voxels.astype(np.float32))


def measure_volume(path: Path) -> VolumeSize:
    """Shape, geometry and memory of an image by its header; VolumeError where that cannot be understood."""
    ending = _ending(path)
    if not ending and dicom.is_dicom(path):
        return dicom.measure(path)
    return MEASURES.get(ending, nifti.measure)(path)


def read_label_volume(path: Path) -> Volume:
    """A label volume as int16; values within 0.001 of an integer are rounded, other fractions refused."""
    with _enough_memory(path):
        volume = _reader_of(path)(path, "label")
        return replace(volume, voxels=integer_labels(volume.voxels, file=path))


@contextmanager
def _enough_memory(path: Path) -> Iterator[None]:
    """Names the file whose voxels the system has no room for, perhaps because its header is damaged."""
    try:
        yield
    except MemoryError as error:
        what = f"its voxels do not fit into the free memory ({error})."
        raise refuse(
            "E207", path, what, "check the header, or crop or downsample the volume first."
        ) from error


def write_volume(
    path: Path,
    voxels: np.ndarray,
    *,
    affine: np.ndarray,
    qform_code: int,
    sform_code: int,
    spacing_mm: Spacing,
) -> None:
    """Write (x, y, z) or (x, y, z, channels) voxels in the format of the name; reading them back is exact.

    Whole numbers take the smallest of uint8, int16 and int32 that holds them (a mask is uint8), others
    float32. With both codes 0 the file keeps no orientation, only `spacing_mm`. Raises VolumeError for a
    format that cannot hold the voxels, such as a PNG of several slices.
    """
    grid = Grid(affine=affine, qform_code=qform_code, sform_code=sform_code, spacing_mm=spacing_mm)
    WRITERS.get(_ending(path), nifti.write)(path, voxels, grid)


def write_on_grid_of(other: HasGrid, path: Path, voxels: np.ndarray) -> None:
    """Write voxels that lie where those of a volume or case lie that was read, as `write_volume`."""
    write_volume(
        path,
        voxels,
        affine=other.affine,
        qform_code=other.qform_code,
        sform_code=other.sform_code,
        spacing_mm=other.spacing_mm,
    )


def mask_ending(image: Path) -> str:
    """The ending of a mask for this image: its own format, PNG for a lossy one, else compressed NIfTI."""
    ending = _ending(image)
    if ending in LOSSY_ENDINGS:
        return ".png"
    return ending if ending in WRITERS else NIFTI_ENDINGS[0]


def companion_files(path: Path) -> tuple[Path, ...]:
    """Files beside `path` that belong to the same volume: the voxels of a .mhd, the spacing of a TIFF.

    None where the header cannot be read; what is wrong with it comes to light with the voxels.
    """
    ending = _ending(path)
    beside = None
    if ending == ".mhd":
        with suppress(VolumeError):
            beside = metaimage.data_file(path)
    elif ending in (".tif", ".tiff"):
        beside = tiff.spacing_file(path)
    return () if beside is None else (beside,)


def _ending(path: Path) -> str:
    return split_ending(path.name, SCAN_ENDINGS)[1].lower()


def _reader_of(path: Path) -> Reader:
    ending = _ending(path)
    if not ending and dicom.is_dicom(path):
        return dicom.read
    return READERS.get(ending, nifti.read)
