"""What the loader accepts as a preprocessed folder, and how it refuses the rest."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_loading.catalogue import build_catalogue, read_foreground
from utils.contracts import PreprocessedCase
from utils.errors import DatasetError
from utils.prepared_folder import list_prepared
from utils.storage import read_array, write_array


@pytest.fixture
def prepared(prepared, tmp_path: Path):
    """A copy of the shared folder that a test may damage."""
    folder = tmp_path / "04_3d"
    shutil.copytree(prepared.folder, folder)
    return replace(prepared, folder=folder, cases=list_prepared(folder))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_array(path, change(read_array(path)))


def label_of(case: PreprocessedCase) -> Path:
    assert case.label is not None
    return case.label


def foreground_of(case: PreprocessedCase) -> Path:
    assert case.foreground is not None
    return case.foreground


def test_every_case_becomes_an_entry_in_the_order_given(prepared) -> None:
    entries = prepared.entries
    assert [entry.case.case_id for entry in entries] == [case.case_id for case in prepared.cases]
    assert [entry.shape for entry in entries] == [case.shape for case in prepared.cases]
    assert {entry.image_type for entry in entries} == {"float32"}


def test_each_label_owns_the_rows_where_it_lies(prepared) -> None:
    for entry in prepared.entries:
        label, table = read_array(label_of(entry.case))[0], entry.foreground
        assert table.labels == (1, 2)
        for name, start, stop in zip(table.labels, table.starts, table.stops, strict=True):
            listed = table.positions[start:stop]
            np.testing.assert_array_equal(listed, np.argwhere(label == name))


def test_a_table_without_foreground_has_no_labels(tmp_path: Path) -> None:
    write_array(tmp_path / "a_fg.npy", np.array([[0, 2, 3, 4]], np.int32))
    table = read_foreground(tmp_path / "a_fg.npy", (2, 3, 4))
    assert (table.labels, table.starts, table.stops, table.positions.shape) == ((), (), (), (0, 3))


def test_rows_in_any_order_are_grouped_by_label(tmp_path: Path) -> None:
    rows = np.array([[0, 9, 9, 9], [2, 0, 0, 1], [1, 0, 0, 2], [2, 0, 0, 3]], np.int32)
    write_array(tmp_path / "a_fg.npy", rows)
    table = read_foreground(tmp_path / "a_fg.npy", (9, 9, 9))
    assert (table.labels, table.starts, table.stops) == ((1, 2), (0, 1), (1, 3))
    np.testing.assert_array_equal(table.positions, [[0, 0, 2], [0, 0, 1], [0, 0, 3]])


def test_an_empty_split_is_refused(prepared) -> None:
    with pytest.raises(DatasetError, match="no cases.*--fold"):
        build_catalogue((), prepared.plan)


def test_a_missing_image_is_named(prepared) -> None:
    path = prepared.cases[1].image
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} is not a readable"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_missing_label_is_named(prepared) -> None:
    path = label_of(prepared.cases[1])
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} is not a readable"):
        build_catalogue(prepared.cases, prepared.plan)


def test_an_image_that_is_cut_off_is_named(prepared) -> None:
    path = prepared.cases[2].image
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DatasetError, match=f"{path} is not a readable"):
        build_catalogue(prepared.cases, prepared.plan)


@pytest.mark.parametrize("dtype", ["float64", "int16", ">f4"])
def test_an_image_of_another_type_is_refused(prepared, dtype: str) -> None:
    path = prepared.cases[0].image
    np.save(path, read_array(path).astype(dtype))
    with pytest.raises(DatasetError, match=f"{path} holds .*; the plan needs float16 or float32"):
        build_catalogue(prepared.cases, prepared.plan)


def test_an_image_with_other_channels_than_the_plan_is_refused(prepared) -> None:
    with pytest.raises(DatasetError, match="needs float16 or float32 with 2 channels"):
        build_catalogue(prepared.cases, replace(prepared.plan, num_channels=2))


def test_a_label_of_another_shape_is_refused(prepared) -> None:
    path = label_of(prepared.cases[0])
    rewrite(path, lambda label: label[:, 1:])
    with pytest.raises(DatasetError, match=f"{path} holds int16 .* do not belong together"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_label_of_another_type_is_refused(prepared) -> None:
    path = label_of(prepared.cases[0])
    rewrite(path, lambda label: label.astype(np.int32))
    with pytest.raises(DatasetError, match=f"{path} holds int32"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_foreground_table_of_another_volume_is_refused(prepared) -> None:
    path = foreground_of(prepared.cases[0])
    path.write_bytes(foreground_of(prepared.cases[1]).read_bytes())
    with pytest.raises(DatasetError, match=f"{path} lists the foreground of a volume of"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_file_that_is_no_foreground_table_is_refused(prepared) -> None:
    path = foreground_of(prepared.cases[0])
    rewrite(path, lambda rows: rows[:, 1:])
    with pytest.raises(DatasetError, match=f"{path} should hold int32 rows of 4"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_case_without_a_mask_is_refused_for_training(prepared) -> None:
    unmarked = replace(prepared.cases[0], foreground=None)
    with pytest.raises(DatasetError, match="case_00 has no mask"):
        build_catalogue((unmarked,), prepared.plan)


def test_the_faults_of_all_cases_are_told_at_once(prepared) -> None:
    prepared.cases[0].image.unlink()
    rewrite(label_of(prepared.cases[2]), lambda label: label[:, 1:])
    with pytest.raises(DatasetError) as refusal:
        build_catalogue(prepared.cases, prepared.plan)
    told = str(refusal.value).splitlines()
    assert len(told) == 2
    assert str(prepared.cases[0].image) in told[0]
    assert str(prepared.cases[2].label) in told[1]


def test_a_folder_of_two_precisions_is_refused(prepared) -> None:
    rewrite(prepared.cases[0].image, lambda image: image.astype(np.float16))
    with pytest.raises(DatasetError, match="mixes float16 and float32"):
        build_catalogue(prepared.cases, prepared.plan)
