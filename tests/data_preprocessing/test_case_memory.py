"""Bytes that a case needs: counted by hand on small cases, and measured against what NumPy holds."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_preprocessing.case_memory import (
    case_size,
    planned_voxels,
    predicting_need,
    preparing_need,
    reading_need,
    with_crop,
)
from data_preprocessing.cases import load_case
from data_preprocessing.prepare import prepare_case
from data_preprocessing.volume_io import read_header, write_volume
from utils.contracts import Plan, RawCase

MakePlan = Callable[..., Plan]
HEADER = 352  # bytes before the voxels


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


def raw(*images: Path, label: Path | None = None) -> RawCase:
    return RawCase(case_id="a", patient_id="a", images=images, label=label)


@pytest.mark.parametrize(("shape", "kind"), [((1500, 1500, 1500), np.int16), ((30000, 30000, 1), np.float32)])
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


def test_other_formats_and_broken_files_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"nothing")
    assert case_size(raw(tmp_path / "a.nii")) is None
    assert case_size(raw(tmp_path / "gone.nii.gz")) is None
    assert case_size(raw(tmp_path / "a.png")) is None


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
