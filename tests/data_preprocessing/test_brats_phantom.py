"""The BraTS phantom: its files, its nested tumour, and that each part can be told by its contrasts."""

from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.brats import MODALITIES
from data_preprocessing.brats_phantom import (
    ENHANCING,
    NECROSIS,
    OEDEMA,
    BratsPatient,
    BratsPhantomOptions,
    draw_patient,
    write_brats_phantom,
)
from data_preprocessing.volume_io import read_label_volume, read_volume
from utils.errors import UserError

FEW = BratsPhantomOptions(num_train=2, num_test=1)


@pytest.fixture(scope="module")
def patients() -> list[BratsPatient]:
    return [draw_patient(seed) for seed in np.random.SeedSequence(3).spawn(12)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def grown(mask: np.ndarray) -> np.ndarray:
    """`mask` and its neighbours along the axes."""
    padded = np.pad(mask, 1)
    shifted = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
    return np.any([padded, *shifted], axis=0)[1:-1, 1:-1, 1:-1]


def test_a_patient_is_a_folder_of_four_contrasts_and_a_mask(tmp_path: Path) -> None:
    write_brats_phantom(tmp_path / "train", tmp_path / "test", FEW)
    home, *_ = sorted((tmp_path / "train").iterdir())
    names = {f"{home.name}_{name}.nii.gz" for name in (*MODALITIES, "seg")}
    assert {path.name for path in home.iterdir()} == names
    (unseen,) = (tmp_path / "test").iterdir()
    assert not (unseen / f"{unseen.name}_seg.nii.gz").exists()


@pytest.mark.flag("convert_brats:seed")
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = BratsPhantomOptions(num_train=2, num_test=1, seed=seed)
        write_brats_phantom(tmp_path / name / "train", tmp_path / name / "test", options)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_without_a_folder_for_them_no_test_patient_is_written(tmp_path: Path) -> None:
    write_brats_phantom(tmp_path / "train", None, FEW)
    assert len(list(tmp_path.rglob("*_flair.nii.gz"))) == 2


def test_all_files_of_a_patient_lie_on_one_grid_that_runs_to_left_posterior_superior(tmp_path: Path) -> None:
    write_brats_phantom(tmp_path, None, BratsPhantomOptions(num_train=1))
    images = [read_volume(next(tmp_path.rglob(f"*_{name}.nii.gz"))) for name in MODALITIES]
    mask = read_label_volume(next(tmp_path.rglob("*_seg.nii.gz")))
    assert {volume.orientation for volume in (*images, mask)} == {"LPS"}
    assert {volume.voxels.shape for volume in (*images, mask)} == {mask.voxels.shape}


def test_every_tumour_has_all_parts_and_lies_in_the_brain(patients: list[BratsPatient]) -> None:
    for patient in patients:
        assert set(np.unique(patient.mask)) == {0, NECROSIS, OEDEMA, ENHANCING}
        assert all((image[patient.mask > 0] > 0).all() for image in patient.images.values())


def test_parts_are_nested_necrosis_never_touches_oedema(patients: list[BratsPatient]) -> None:
    for patient in patients:
        around = grown(patient.mask == NECROSIS) & (patient.mask != NECROSIS)
        assert set(np.unique(patient.mask[around])) == {ENHANCING}


def test_a_part_is_brighter_or_darker_where_mr_shows_it_so(patients: list[BratsPatient]) -> None:
    for patient in patients:
        tissue = (patient.images["flair"] > 0) & (patient.mask == 0)

        def mean(name: str, where: np.ndarray, patient: BratsPatient = patient) -> float:
            return float(patient.images[name][where].mean())

        for name in ("flair", "t2"):
            assert mean(name, patient.mask == OEDEMA) > 1.4 * mean(name, tissue)
        assert mean("t1ce", patient.mask == ENHANCING) > 1.4 * mean("t1ce", tissue)
        assert mean("t1ce", patient.mask == NECROSIS) < 0.8 * mean("t1ce", tissue)


@pytest.mark.parametrize(("name", "number"), [("num_train", 0), ("num_test", -1), ("seed", -1)])
def test_no_patients_and_negative_numbers_are_refused(name: str, number: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--{name} should be at least {number + 1}, got {number}"):
        write_brats_phantom(tmp_path, None, BratsPhantomOptions(**{name: number}))
