"""Bytes that a case needs: counted by hand on small cases, and measured against what NumPy holds."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_preprocessing.case_memory import (
    case_size,
    planned_voxels,
    predicting_need,
    preparing_need,
    reading_need,
    with_crop,
)
from data_preprocessing.cases import load_case
from data_preprocessing.faults import VolumeError
from data_preprocessing.prepare import prepare_case
from data_preprocessing.volume_io import read_header, read_volume, write_volume
from tests.dicom_tools import stored_voxels, write_series
from utils.contracts import Plan, RawCase

MakePlan = Callable[..., Plan]
HEADER = 352  # bytes before the voxels
SMALL = 100_000  # bytes that reading any file takes
NRRD_HEADER = (
    "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 1500 1500 1500\n"
    "space directions: (1,0,0) (0,2,0) (0,0,3)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
)
META_HEADER = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 2 3\n"
    "DimSize = 1500 1500 1500\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
)


def write_header(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> int:
    """A NIfTI file of zeros that takes no place on the disk; its size in bytes."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.dtype(kind))
    header.set_data_shape(shape)
    header.set_sform(np.diag([1.0, 1.0, 2.0, 1.0]), code=1)
    header["vox_offset"] = HEADER
    header["magic"] = b"n+1"
    length = HEADER + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    with path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        stream.truncate(length)
    return length


def write_picture_header(path: Path, columns: int, rows: int) -> None:
    """A PNG of three colours that ends behind its first pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def raw(*images: Path, label: Path | None = None) -> RawCase:
    return RawCase(case_id="a", patient_id="a", images=images, label=label)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1500, 1500, 1500), np.int16), ((1500, 1500, 1500), np.float32), ((30000, 30000, 1), np.float32)],
)
def test_a_file_of_gigabytes_is_measured_by_its_header(
    tmp_path: Path, make_plan: MakePlan, shape: tuple[int, int, int], kind: type[np.generic]
) -> None:
    """3.4e9 voxels, and 3.6e9 bytes: both are more than 32 bits count."""
    length = write_header(tmp_path / "a.nii", shape, kind)
    assert (tmp_path / "a.nii").stat().st_blocks < 100
    voxels = shape[0] * shape[1] * shape[2]
    assert read_header(tmp_path / "a.nii").voxel_bytes == length - HEADER == voxels * np.dtype(kind).itemsize
    size = case_size(raw(tmp_path / "a.nii"))
    assert size is not None
    assert (size.shape, size.spacing_mm, size.voxels) == (shape[::-1], (2.0, 1.0, 1.0), voxels)
    assert size.reading == length + 4 * voxels
    plan = make_plan(spacing_mm=(2.0, 1.0, 1.0))
    assert planned_voxels(size, plan) == voxels
    # The loaded and the cropped image with its mask, and both halves of the normalisation.
    assert preparing_need(size, plan).most == voxels * (4 + 5 + 8)


def test_the_planned_grid_is_that_of_the_spacing_and_the_axes(tmp_path: Path, make_plan: MakePlan) -> None:
    write_header(tmp_path / "a.nii", (40, 50, 60), np.int16)
    size = case_size(raw(tmp_path / "a.nii"))
    assert size is not None
    assert planned_voxels(size, make_plan(spacing_mm=(4.0, 0.5, 2.0))) == 30 * 100 * 20
    turned = make_plan(spacing_mm=(4.0, 0.5, 2.0), axis_order=(1, 0, 2))
    assert planned_voxels(size, turned) == round(50 / 4) * (60 * 4) * 20
    flat = make_plan(flat=True, spacing_mm=(9.0, 0.5, 2.0))
    assert planned_voxels(size, flat) == 60 * 100 * 20
    assert planned_voxels(with_crop(size, (30, 50, 40)), flat) == 30 * 100 * 20
    assert planned_voxels(size, make_plan(spacing_mm=(4.0, 0.5, 2.0), resampling="none")) == size.voxels


def test_a_known_crop_makes_the_estimate_certain(tmp_path: Path, make_plan: MakePlan) -> None:
    write_header(tmp_path / "a.nii", (40, 50, 60), np.int16)
    size = case_size(raw(tmp_path / "a.nii"))
    assert size is not None
    whole = preparing_need(size, make_plan())
    assert whole.least == size.reading < whole.most
    half = preparing_need(with_crop(size, (30, 50, 40)), make_plan())
    assert whole.least < half.least == half.most < whole.most


def test_more_labels_and_more_plans_need_more_for_a_prediction(tmp_path: Path, make_plan: MakePlan) -> None:
    write_header(tmp_path / "a.nii", (40, 50, 60), np.int16)
    size = case_size(raw(tmp_path / "a.nii"))
    assert size is not None
    few, many = make_plan(), make_plan(num_labels=30)
    needs = [predicting_need(size, plans).most for plans in ([few], [many], [many, few])]
    assert needs == sorted(set(needs))


def test_broken_files_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"nothing")
    for name in ("a.nii", "gone.nii.gz", "gone.png", "gone.tif", "gone.mhd", "gone.dcm"):
        assert case_size(raw(tmp_path / name)) is None


@pytest.mark.parametrize(
    "ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".tif", ".png", ".bmp", ".jpg"]
)
def test_every_format_is_measured_as_it_is_read(tmp_path: Path, ending: str) -> None:
    """Shape and spacing are those of the loaded case, and its peak lies below the estimate, but not far."""
    path, is_picture = tmp_path / f"a{ending}", ending in (".png", ".bmp", ".jpg")
    generator = np.random.default_rng(0)
    if is_picture:
        pixels = generator.integers(0, 255, (400, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    else:
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        grid = {"affine": affine, "qform_code": 1, "sform_code": 1, "spacing_mm": (1.0, 1.0, 2.0)}
        write_volume(path, generator.integers(0, 900, (80, 60, 40)).astype(np.int16), **grid)
    size = case_size(raw(path))
    assert size is not None
    tracemalloc.start()
    try:
        loaded = read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (size.channels, size.shape) == ((3, (1, 400, 500)) if is_picture else (1, (40, 60, 80)))
    assert size.spacing_mm == pytest.approx(loaded.spacing_mm[::-1])
    assert 0.5 * size.reading < peak <= 1.1 * size.reading + SMALL


@pytest.mark.parametrize("header", [NRRD_HEADER, META_HEADER])
def test_a_medical_volume_of_gigabytes_is_measured_by_its_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / ("a.nrrd" if header.startswith("NRRD") else "a.mha")
    text, num_bytes = header.encode(), 4 * 1500**3
    with path.open("wb") as stream:
        stream.write(text)
        stream.truncate(len(text) + num_bytes)
    size = case_size(raw(path))
    assert size is not None
    assert (size.shape, size.channels, size.spacing_mm) == ((1500, 1500, 1500), 1, (3.0, 2.0, 1.0))
    assert 2 * num_bytes <= size.reading < 3.1 * num_bytes


def test_a_large_picture_is_accepted_without_a_warning_of_pillow(tmp_path: Path) -> None:
    """14000 x 14000 pixels are above the limit that Pillow has by itself, 30000 x 30000 far above."""
    write_picture_header(tmp_path / "a.png", 30000, 30000)
    size = case_size(raw(tmp_path / "a.png"))
    assert size is not None
    assert (size.shape, size.channels) == ((1, 30000, 30000), 3)
    assert size.reading >= 30000**2 * 3 * (1 + 4)
    Image.fromarray(np.zeros((200, 300), np.uint8)).save(tmp_path / "b.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)  # as 14000 x 14000 is to Pillow's own
        assert read_volume(tmp_path / "b.png").voxels.shape == (300, 200, 1)
    write_picture_header(tmp_path / "c.png", 2**31 - 1, 2**31 - 1)
    with pytest.raises(VolumeError, match="E207"):
        read_volume(tmp_path / "c.png")
    assert case_size(raw(tmp_path / "c.png")) is None


def test_a_series_is_measured_by_the_headers_of_its_slices(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_voxels())
    size, volume = case_size(raw(paths[0])), read_volume(paths[0])
    assert size is not None
    shape = tuple(volume.voxels.shape[axis] for axis in (2, 1, 0))
    assert (sorted(size.shape), size.channels) == (sorted(shape), 1)
    assert size.reading >= 2 * 4 * volume.voxels.size


@pytest.mark.parametrize("num_files", [1, 2])
def test_the_estimate_is_near_what_is_really_held(
    tmp_path: Path, make_plan: MakePlan, num_files: int
) -> None:
    """The peak of NumPy's allocations lies between half of the estimate and the estimate."""
    generator = np.random.default_rng(0)
    geometry = {"affine": np.eye(4), "qform_code": 1, "sform_code": 1, "spacing_mm": (1.0, 1.0, 1.0)}
    images = tuple(tmp_path / f"a_{index:04d}.nii.gz" for index in range(num_files))
    for path in images:
        write_volume(path, generator.normal(100, 9, (96, 96, 64)).astype(np.float32), **geometry)
    case = raw(*images)
    base = make_plan(spacing_mm=(1.0, 0.8, 0.8))
    many = {
        name: getattr(base, name) * num_files
        for name in ("normalisers", "uses_mask", "intensity", "channel_names")
    }
    plan = replace(base, num_channels=num_files, **many)
    size = case_size(case)
    assert size is not None
    prepare_case(load_case(case), plan, mode="test")  # the weights of the axes are kept
    tracemalloc.start()
    try:
        loaded = load_case(case)
        read_peak = tracemalloc.get_traced_memory()[1]
        prepare_case(loaded, plan, mode="test")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.5 * reading_need(size).least < read_peak <= 1.1 * reading_need(size).most
    assert 0.5 * preparing_need(size, plan).most < peak <= 1.1 * preparing_need(size, plan).most
