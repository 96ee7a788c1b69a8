"""NIfTI files <-> voxels, affine and spacing: read to the last byte, written whole or not at all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip, isal_zlib

from data_preprocessing.faults import make_fault
from data_preprocessing.nifti_header import HEADER_BYTES, VolumeHeader, parse_header
from data_preprocessing.stored_bytes import (
    ANY_WINDOW,
    GZIP_MAGIC,
    cut_off,
    errors_named,
    inflate,
    read_plain_file,
    read_start,
    voxels_of,
)
from data_preprocessing.volume import (
    Grid,
    Purpose,
    Volume,
    VolumeSize,
    axis_codes,
    compact,
    wrapped_negatives,
)
from utils.storage import atomic_file

HEAD_OF_FILE = 2**17  # compressed bytes that surely hold the header
COMPRESSION_LEVEL = 1  # isal: as small as gzip 6 on CT, 20 times as fast
SMALLEST_HEADER = 348  # bytes of a NIfTI-1 header


def read_header(path: Path) -> VolumeHeader:
    """The checked header of a NIfTI file; the voxels are neither read nor checked."""
    return parse_header(_header_bytes(read_start(path, HEAD_OF_FILE), path), path)


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the header; an unpacked copy and a scaled one count where there are such."""
    header = read_header(path)
    unpacked = header.voxel_bytes if path.name.lower().endswith(".gz") else 0
    is_scaled = header.slope != 1 or header.inter != 0
    scaled = math.prod(header.shape) * np.dtype(np.float64).itemsize if is_scaled else 0
    return VolumeSize(
        shape=header.shape, affine=header.affine, beside=path.stat().st_size + unpacked + scaled
    )


def read(path: Path, purpose: Purpose) -> Volume:
    """The volume as the header asks: stored numbers where there is no scaling, else float64."""
    content = read_plain_file(path)
    header = parse_header(_header_bytes(content, path), path)
    is_compressed = content.startswith(GZIP_MAGIC)
    if is_compressed:
        content = inflate(content, header.voxel_offset + header.voxel_bytes, path)
    if is_compressed != path.name.endswith(".gz"):
        state = "compressed" if is_compressed else "not compressed"
        what = f"the content is {state}, against the name; it was read anyway."
        remark = make_fault("W201", path, what, "rename the file: .nii.gz is compressed, .nii is not.")
        header = replace(header, remarks=(*header.remarks, remark))
    stored = _stored_voxels(content, header, path)
    scaled = stored
    if header.slope != 1 or header.inter != 0:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as infinity
            scaled = stored.astype(np.float64) * header.slope + header.inter
    return Volume(
        voxels=scaled,
        affine=header.affine,
        spacing_mm=header.spacing_mm,
        qform_code=header.qform_code,
        sform_code=header.sform_code,
        orientation=axis_codes(header.affine),
        remarks=(*header.remarks, *(wrapped_negatives(stored, path) if purpose == "image" else ())),
    )


def write(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    """With both form codes 0 the file keeps no orientation. Compressed if the name ends with .gz."""
    stored = compact(voxels)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_zooms((*grid.spacing_mm, *(1.0,) * (stored.ndim - 3)))
    header.set_xyzt_units("mm")
    if grid.has_position:
        header.set_qform(grid.affine, code=grid.qform_code)
        header.set_sform(grid.affine, code=grid.sform_code)
    content = nibabel.Nifti1Image(stored, None, header).to_bytes()
    if path.name.endswith(".gz"):
        content = igzip.compress(content, COMPRESSION_LEVEL, mtime=0)
    with atomic_file(path) as stream:
        stream.write(content)


def _stored_voxels(content: bytes, header: VolumeHeader, path: Path) -> np.ndarray:
    if len(content) < header.voxel_offset:
        raise cut_off(path, header.voxel_offset + header.voxel_bytes, len(content))
    behind = memoryview(content)[header.voxel_offset :]
    return voxels_of(behind, header.voxel_type, header.shape, path)


def _header_bytes(content: bytes, path: Path) -> bytes:
    """The first uncompressed bytes."""
    head = content[:HEADER_BYTES]
    if content.startswith(GZIP_MAGIC):
        with errors_named(path):
            stream = isal_zlib.decompressobj(wbits=ANY_WINDOW)
            head = stream.decompress(content[:HEAD_OF_FILE], HEADER_BYTES)
    if len(head) < SMALLEST_HEADER:
        raise cut_off(path, SMALLEST_HEADER, len(head))
    return head
