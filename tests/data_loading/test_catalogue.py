"""What the loader accepts as a preprocessed folder, and how it refuses the rest."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_loading.catalogue import (
    Entry,
    build_catalogue,
    read_foreground,
    refuse_aimless,
    refuse_unpaired,
)
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
    with pytest.raises(DatasetError, match=f"{path} does not exist. Delete case_01.json .*preprocess.py"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_missing_label_is_named(prepared) -> None:
    path = label_of(prepared.cases[1])
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} does not exist. Delete case_01.json"):
        build_catalogue(prepared.cases, prepared.plan)


@pytest.mark.parametrize("which", [lambda case: case.image, label_of, foreground_of])
def test_a_file_that_is_cut_off_is_named(prepared, which: Callable[[PreprocessedCase], Path]) -> None:
    path = which(prepared.cases[2])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DatasetError, match=f"{path} is cut off.*Delete case_02.json"):
        build_catalogue(prepared.cases, prepared.plan)


@pytest.mark.parametrize("dtype", ["float64", "int16", "complex64"])
def test_an_image_of_another_type_is_refused(prepared, dtype: str) -> None:
    path = prepared.cases[0].image
    np.save(path, read_array(path).astype(dtype))
    with pytest.raises(DatasetError, match=f"{path} holds {dtype} .*; the loader reads float16 or float32"):
        build_catalogue(prepared.cases, prepared.plan)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: image.astype(">f4"), "is big-endian"),
        (lambda image: np.asfortranarray(image), "is in Fortran order"),
        (lambda image: image.astype(object), "holds pickled Python objects"),
        (lambda image: image[0], "the loader reads float16 or float32 of .channels, depth, height, width"),
        (
            lambda image: image[:, :0],
            "the loader reads float16 or float32 of .channels, depth, height, width",
        ),
        (lambda image: image[:, 1:], r"case_00.json tells of \(7, 9, 8\) voxels"),
    ],
    ids=["big-endian", "fortran", "objects", "no channels", "empty", "other shape"],
)
def test_an_image_in_another_form_is_refused(
    prepared, change: Callable[[np.ndarray], np.ndarray], told: str
) -> None:
    path = prepared.cases[0].image
    np.save(path, change(read_array(path)))
    with pytest.raises(DatasetError, match=f"{path} .*{told}.*Delete case_00.json"):
        build_catalogue(prepared.cases[:1], prepared.plan)


def test_an_image_with_other_channels_than_the_plan_is_refused(prepared) -> None:
    with pytest.raises(DatasetError, match="needs 2 channels .*plan and this folder"):
        build_catalogue(prepared.cases, replace(prepared.plan, num_channels=2))


def test_a_label_of_another_shape_is_refused(prepared) -> None:
    path = label_of(prepared.cases[0])
    rewrite(path, lambda label: label[:, 1:])
    with pytest.raises(
        DatasetError, match=f"{path} holds int16 .* beside an image of .*7, 9, 8.*Delete case_00.json"
    ):
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


def test_a_foreground_voxel_outside_the_volume_is_refused(prepared) -> None:
    path = foreground_of(prepared.cases[0])
    rewrite(path, lambda rows: np.concatenate([rows, np.array([[1, 0, 9, 0]], np.int32)]))
    with pytest.raises(DatasetError, match=f"{path} lists voxels outside the volume"):
        build_catalogue(prepared.cases, prepared.plan)


def test_a_label_that_the_plan_does_not_know_is_refused(prepared) -> None:
    with pytest.raises(DatasetError, match=r"_fg.npy lists the labels \[2\], the plan has 2 labels .*organ"):
        build_catalogue(
            prepared.cases, replace(prepared.plan, num_labels=2, label_names=("background", "organ"))
        )


def test_a_class_that_the_plan_does_not_know_is_refused(prepared) -> None:
    with pytest.raises(DatasetError, match="Case case_01 has class 1, the plan has 1 classes .*benign"):
        build_catalogue(prepared.cases, replace(prepared.plan, num_classes=1, class_names=("benign",)))


@pytest.mark.parametrize("changed", [{"label": None, "foreground": None}, {"foreground": None}])
def test_a_case_without_a_mask_has_no_label_file_and_no_foreground(
    prepared, changed: dict[str, None]
) -> None:
    cases = (replace(prepared.cases[0], **changed), *prepared.cases[1:])
    first, second, *_ = build_catalogue(cases, prepared.plan)
    assert first.case.label is None
    assert (first.foreground.labels, first.foreground.positions.shape) == ((), (0, 3))
    assert second.case.label is not None
    assert second.foreground.labels == (1, 2)


def test_a_table_without_its_mask_is_refused(prepared) -> None:
    cases = (replace(prepared.cases[0], label=None), *prepared.cases[1:])
    with pytest.raises(DatasetError, match="case_00 has a foreground table but no mask"):
        build_catalogue(cases, prepared.plan)


def test_masks_or_classes_are_enough_to_learn_from_but_neither_is_not(prepared) -> None:
    def without(**changed: Any) -> tuple[Entry, ...]:
        return build_catalogue([replace(case, **changed) for case in prepared.cases], prepared.plan)

    refuse_aimless(without(class_target=-1))
    refuse_aimless(without(label=None, foreground=None))
    with pytest.raises(DatasetError, match="No training case has a mask or a class.*preprocess.py"):
        refuse_aimless(without(label=None, foreground=None, class_target=-1))


def test_files_without_their_partner_are_named(prepared) -> None:
    refuse_unpaired(prepared.folder)
    prepared.cases[1].image.unlink()
    (prepared.folder / "case_03.json").unlink()
    with pytest.raises(DatasetError) as refusal:
        refuse_unpaired(prepared.folder)
    first, second, fix = str(refusal.value).splitlines()
    assert first == f"{prepared.folder / 'case_01_y.npy'} has no case_01_x.npy beside it."
    assert second == f"{prepared.folder / 'case_03_x.npy'} has no case_03.json beside it."
    assert "preprocess.py" in fix


def prior_of(prepared, place: int) -> Path:
    return prepared.folder / f"case_{place:02d}_prior.npy"


@pytest.fixture
def cascade(prepared):
    """The folder of a second stage: every case has the first stage's labels."""
    for place, case in enumerate(prepared.cases):
        write_array(prior_of(prepared, place), np.zeros((1, *case.shape), np.int16))
    return replace(prepared, plan=replace(prepared.plan, prior_labels=2))


def test_the_previous_stage_is_found_beside_the_image(cascade) -> None:
    assert [entry.prior for entry in cascade.entries] == [prior_of(cascade, place) for place in range(5)]


def test_a_plan_without_a_previous_stage_leaves_its_files_alone(cascade) -> None:
    entries = build_catalogue(cascade.cases, replace(cascade.plan, prior_labels=0))
    assert {entry.prior for entry in entries} == {None}


def test_a_missing_or_wrong_previous_stage_says_what_to_predict(cascade) -> None:
    prior_of(cascade, 0).unlink()
    rewrite(prior_of(cascade, 1), lambda prior: prior.astype(np.uint8))
    rewrite(prior_of(cascade, 2), lambda prior: prior[:, 1:])
    rewrite(prior_of(cascade, 3), lambda prior: prior[0])
    prior_of(cascade, 4).write_bytes(prior_of(cascade, 4).read_bytes()[:-1])
    with pytest.raises(DatasetError) as refusal:
        build_catalogue(cascade.cases, cascade.plan)
    told = str(refusal.value).splitlines()
    *told, remedy = told
    assert len(told) == 5
    for place, line in enumerate(told):
        assert line.startswith(str(prior_of(cascade, place)))
    assert "5 of 5 cases have none" in remedy
    assert f"python scripts/cascade.py --data {cascade.folder.parent} --task " in remedy
    assert "does not exist" in told[0]
    assert "holds uint8" in told[1]
    assert "is cut off" in told[4]


def test_plain_images_are_one_slice_deep(prepare_folder) -> None:
    flat = prepare_folder([(1, 9, 8), (1, 7, 7)], patch=(1, 6, 5))
    assert len(build_catalogue(flat.cases, flat.plan, slices_only=True)) == 2
    mixed = prepare_folder([(1, 9, 8), (3, 7, 7)], patch=(1, 6, 5))
    with pytest.raises(DatasetError, match="Case case_01: .* is 3 slices deep; --data2d_dim 2"):
        build_catalogue(mixed.cases, mixed.plan, slices_only=True)


def test_no_voxel_is_read(prepared) -> None:
    """Volumes of 600 GB that take no room on the disk: reading them would not end."""
    shape = (3000, 10_000, 10_000)
    case = replace(prepared.cases[0], shape=shape)
    for path, dtype in ((case.image, "<f2"), (label_of(case), "<i2")):
        with path.open("wb") as stream:
            header = {"descr": dtype, "fortran_order": False, "shape": (1, *shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.truncate(stream.tell() + 2 * int(np.prod(shape)))
    write_array(foreground_of(case), np.array([[0, *shape], [1, 2999, 0, 0]], np.int32))
    (entry,) = build_catalogue([case], prepared.plan)
    assert (entry.shape, entry.image_type, entry.foreground.labels) == (shape, "float16", (1,))


def test_the_faults_of_all_cases_are_told_at_once(prepared) -> None:
    prepared.cases[0].image.unlink()
    rewrite(label_of(prepared.cases[2]), lambda label: label[:, 1:])
    with pytest.raises(DatasetError) as refusal:
        build_catalogue(prepared.cases, prepared.plan)
    told = str(refusal.value).splitlines()
    assert len(told) == 2
    assert str(prepared.cases[0].image) in told[0]
    assert str(prepared.cases[2].label) in told[1]


def test_all_faults_of_one_case_are_told_at_once(prepared) -> None:
    case = prepared.cases[0]
    for path in (case.image, case.label, case.foreground):
        path.unlink()
    with pytest.raises(DatasetError) as refusal:
        build_catalogue(prepared.cases, prepared.plan)
    told = str(refusal.value).splitlines()
    assert [line.split(" does not exist")[0] for line in told] == [
        str(path) for path in (case.image, case.label, case.foreground)
    ]


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted(prepared) -> None:
    gone = [replace(prepared.cases[0], image=prepared.folder / f"{place:03d}_x.npy") for place in range(100)]
    with pytest.raises(DatasetError) as refusal:
        build_catalogue(gone, prepared.plan)
    told = str(refusal.value).splitlines()
    assert len(told) == 31
    assert told[-1] == "... and 70 more."


def test_a_folder_of_two_precisions_is_refused(prepared) -> None:
    rewrite(prepared.cases[0].image, lambda image: image.astype(np.float16))
    with pytest.raises(DatasetError, match="mixes float16 and float32"):
        build_catalogue(prepared.cases, prepared.plan)
