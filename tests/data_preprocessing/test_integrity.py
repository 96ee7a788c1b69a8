from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from data_preprocessing.cases import label_values, load_case
from data_preprocessing.dataset import read_dataset
from data_preprocessing.faults import FAULT_CODES, DatasetFaults, make_fault
from data_preprocessing.integrity import check_case, check_dataset
from data_preprocessing.volume_io import write_volume
from utils.contracts import Dataset, RawCase

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SHAPE = (5, 4, 3)


def affine(*, shift_mm: float = 0.0, spacing_mm: float = 1.0) -> np.ndarray:
    matrix = np.diag([spacing_mm, 1.0, 2.0, 1.0])
    matrix[0, 3] = shift_mm
    return matrix


def write(path: Path, voxels: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    matrix = affine() if matrix is None else matrix
    spacing = (float(matrix[0, 0]), 1.0, 2.0)
    write_volume(path, voxels, affine=matrix, qform_code=1, sform_code=1, spacing_mm=spacing)
    return path


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def mask(value: float = 1) -> np.ndarray:
    label = np.zeros(SHAPE)
    label[2, 1, 1] = value
    return label if value % 1 else label.astype(np.int16)


def make_case(folder: Path, name: str = "case_a", *, seed: int = 0) -> RawCase:
    image = write(folder / f"{name}_0000.nii.gz", noise(seed))
    label = write(folder / f"{name}.nii.gz", mask())
    return RawCase(case_id=name, patient_id=name, images=(image,), label=label)


def make_dataset(*cases: RawCase, labels: tuple[str, ...] = ("background", "tumour")) -> Dataset:
    return Dataset(
        name="Dataset001_Tiny",
        root=Path("tiny"),
        channel_names=("CT",),
        label_names=labels,
        class_names=(),
        class_title="",
        training=cases,
        test=(),
    )


def codes(case: RawCase, dataset: Dataset | None = None) -> list[str]:
    check = check_case(case, dataset or make_dataset(case))
    assert all(fault.case_id == case.case_id for fault in check.faults)
    return [fault.code for fault in check.faults]


def test_a_sound_case_has_no_fault(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    check = check_case(case, make_dataset(case))
    assert check.faults == ()
    assert check.labels == (0, 1)
    assert len(check.content_hash) == 64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_named_with_its_place(tmp_path: Path, value: float) -> None:
    case = make_case(tmp_path)
    image = noise(0)
    image[1, 2, 0] = value
    write(case.images[0], image)
    (fault,) = check_case(case, make_dataset(case)).faults
    assert fault.code == "E301"
    assert "(1, 2, 0)" in fault.what


def test_a_constant_image_is_an_error_a_constant_channel_a_warning(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    flat = write(tmp_path / "flat.nii.gz", np.full(SHAPE, 7))
    assert codes(replace(case, images=(flat,))) == ["E302"]
    two_channels = replace(make_dataset(case), channel_names=("T1", "T2"))
    assert codes(replace(case, images=(case.images[0], flat)), two_channels) == ["W302"]


@pytest.mark.parametrize(("value", "code"), [(2, "E304"), (-1, "E304"), (300, "E304"), (0.5, "E303")])
def test_a_label_value_that_is_not_declared_is_an_error(tmp_path: Path, value: float, code: str) -> None:
    case = make_case(tmp_path)
    write(tmp_path / "case_a.nii.gz", mask(value))
    (fault,) = check_case(case, make_dataset(case)).faults
    assert fault.code == code
    assert "(2, 1, 1)" in fault.what


def test_the_ignore_label_is_allowed(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    write(tmp_path / "case_a.nii.gz", mask(2))
    assert codes(case, replace(make_dataset(case), ignore_label=2)) == []


def test_an_empty_label_is_a_warning(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    write(tmp_path / "case_a.nii.gz", mask(0))
    (fault,) = check_case(case, make_dataset(case)).faults
    assert (fault.code, fault.severity) == ("W301", "warning")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("values", [[0], [0, 1], [-32768, 0, 32767], [5, 6, 9], [-1, 0, 2]])
def test_every_label_value_is_found_wherever_it_lies(values: list[int], order: Literal["C", "F"]) -> None:
    for size in (3, 4096, 3 * 4096 + 5):
        label = np.full((size, 1, 2), values[0], dtype=np.int16, order=order)
        for value, place in zip(values, (0, size - 1, size // 2), strict=False):
            label[place, 0, 1] = value
        assert label_values(label) == tuple(sorted(values))


def test_shapes_that_differ_are_both_named(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    write(tmp_path / "case_a.nii.gz", mask()[:4])
    (fault,) = check_case(case, make_dataset(case)).faults
    assert fault.code == "E306"
    assert "(4, 4, 3)" in fault.what
    assert "(5, 4, 3)" in fault.what


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (affine(shift_mm=0.0001), []),
        (affine(shift_mm=8.6), ["E307"]),
        (affine(spacing_mm=1.25), ["E307"]),
        (affine() @ np.diag([-1.0, 1, 1, 1]), ["E307"]),
    ],
)
def test_a_label_must_lie_on_its_image(tmp_path: Path, matrix: np.ndarray, expected: list[str]) -> None:
    case = make_case(tmp_path)
    path = tmp_path / "case_a.nii.gz"
    spacing = (abs(float(matrix[0, 0])), 1.0, 2.0)
    write_volume(path, mask(), affine=matrix, qform_code=1, sform_code=1, spacing_mm=spacing)
    assert codes(case) == expected


def test_channels_must_share_one_grid(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    other = write(tmp_path / "other.nii.gz", noise(1), affine(shift_mm=3))
    dataset = replace(make_dataset(case), channel_names=("T1", "T2"))
    assert codes(replace(case, images=(case.images[0], other)), dataset) == ["E307"]


def test_volumes_in_one_file_must_match_the_declared_channels(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    path = write(tmp_path / "double.nii.gz", np.stack([noise(1), noise(2)], axis=-1))
    double = replace(case, images=(path,))
    assert codes(double) == ["E305"]
    assert codes(double, replace(make_dataset(case), channel_names=("T1", "T2"))) == []


def test_one_pass_reports_every_bad_file_of_every_case(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    cases[0].images[0].write_bytes(b"")
    write(tmp_path / "c.nii.gz", mask(9))
    faults = check_dataset(make_dataset(*cases), num_jobs=1)
    assert [(fault.case_id, fault.code) for fault in faults] == [("a", "E201"), ("c", "E304")]


def test_both_files_of_one_case_are_judged(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    case.images[0].write_bytes(b"")
    write(tmp_path / "case_a.nii.gz", mask(9))
    assert codes(case) == ["E201", "E304"]


def test_the_same_image_under_two_ids_is_a_leak(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name, seed=0) for name in ("a", "b")]
    (fault,) = check_dataset(make_dataset(*cases), num_jobs=1)
    assert (fault.code, fault.case_id) == ("E308", "b")
    assert "case a" in fault.what


def test_a_label_that_no_case_shows_is_an_error(tmp_path: Path) -> None:
    dataset = make_dataset(make_case(tmp_path), labels=("background", "tumour", "cyst"))
    (fault,) = check_dataset(dataset, num_jobs=1)
    assert fault.code == "E309"
    assert "2 (cyst)" in fault.what


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, name, seed=0) for name in ("a", "b")]
    dataset = make_dataset(*cases)
    assert check_dataset(dataset, num_jobs=2) == check_dataset(dataset, num_jobs=1)


def test_a_loaded_case_has_channels_first_in_file_axes(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    second = write(tmp_path / "second.nii.gz", noise(1))
    loaded = load_case(replace(case, images=(case.images[0], second)), allowed_labels=frozenset({0, 1}))
    assert loaded.image.shape == (2, *SHAPE)
    assert loaded.image.dtype == np.float32
    np.testing.assert_array_equal(loaded.image[1], noise(1))
    assert loaded.label is not None
    assert loaded.label.dtype == np.int16
    assert (loaded.spacing_mm, loaded.orientation) == ((1.0, 1.0, 2.0), "RAS")


def test_one_4d_file_and_one_file_per_channel_load_alike(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    second = write(tmp_path / "second.nii.gz", noise(1))
    both = write(tmp_path / "both.nii.gz", np.stack([noise(0), noise(1)], axis=-1))
    apart = load_case(replace(case, images=(case.images[0], second)))
    together = load_case(replace(case, images=(both,)))
    np.testing.assert_array_equal(apart.image, together.image)


def test_loading_a_faulty_case_raises_every_error_with_its_id(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    case.images[0].write_bytes(b"")
    write(tmp_path / "case_a.nii.gz", mask(9))
    with pytest.raises(DatasetFaults) as caught:
        load_case(case, allowed_labels=frozenset({0, 1}))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["E201 case case_a", "E304 case case_a"]


def test_a_fault_must_stand_in_the_table() -> None:
    assert make_fault("W301", "file", "what", "fix").severity == "warning"
    assert all(meaning for meaning in FAULT_CODES.values())
    with pytest.raises(KeyError, match="E999"):
        make_fault("E999", "file", "what", "fix")


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real datasets are not in ../shared/data")
@pytest.mark.parametrize("name", ["Task04_Hippocampus", "Dataset010_LIDCNodules"])
def test_cases_of_the_real_datasets_have_no_fault(name: str) -> None:
    dataset = read_dataset(DATA / name)
    assert check_dataset(replace(dataset, training=dataset.training[::40]), num_jobs=1) == ()
