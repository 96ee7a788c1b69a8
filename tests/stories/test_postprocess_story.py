"""`python scripts/postprocess.py` from a folder of masks to cleaned ones, on masks made here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import read_label_volume, write_volume
from scripts.postprocess import PostprocessOptions, run
from utils.errors import DatasetError, UserError
from utils.storage import read_json, write_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
NAMES = {"background": 0, "pancreas": 1, "lesion": 2}


def write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, voxels, affine=AFFINE, qform_code=1, sform_code=1, spacing_mm=(1.0, 1.0, 5.0))


def truth(size: int) -> np.ndarray:
    """An organ with a lesion, and a second part of the organ that is no mistake."""
    voxels = np.zeros((16, 10, 6), np.uint8)
    voxels[2 : 2 + size, 2:8, 1:4] = 1
    voxels[3:5, 3:5, 2] = 2
    voxels[14, 2:8, 1:4] = 1
    return voxels


def with_island(voxels: np.ndarray) -> np.ndarray:
    """A single voxel of lesion far from the others."""
    voxels = voxels.copy()
    voxels[14, 9, 5] = 2
    return voxels


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """labels/ and preds/ of three cases with an island each, preds/ of a fourth without a reference."""
    write_json(
        tmp_path / "dataset.json", {"labels": NAMES, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    )
    for case_id, size in (("a", 4), ("b", 5), ("c", 6), ("d", 7)):
        if case_id != "d":
            write(tmp_path / "labels" / f"{case_id}.nii.gz", truth(size))
        write(tmp_path / "preds" / f"{case_id}.nii.gz", with_island(truth(size)))
    return tmp_path


def test_what_helps_is_found_written_and_applied_to_every_mask(folders: Path) -> None:
    output = folders / "clean"
    assert run(PostprocessOptions(preds=folders / "preds", output=output, lbls=folders / "labels")) == 4
    record = read_json(output / "postprocessing.json")
    # The second part of the organ has to stay: all labels together are not reduced to one component.
    assert [step["name"] for step in record["steps"]] == ["lesion"]
    assert (record["num_cases"], record["dice_after"]) == (3, 1.0)
    for case_id, size in (("a", 4), ("d", 7)):
        cleaned = read_label_volume(output / f"{case_id}.nii.gz")
        np.testing.assert_array_equal(cleaned.voxels, truth(size))
        np.testing.assert_allclose(cleaned.affine, AFFINE)


def test_a_file_found_before_cleans_other_masks(folders: Path) -> None:
    found = folders / "found"
    run(PostprocessOptions(preds=folders / "preds", output=found, lbls=folders / "labels"))
    write(folders / "others" / "e.nii.gz", with_island(truth(3)))
    write(folders / "others" / "f.nii.gz", truth(3))
    words = ["--preds", "others", "-o", "again", "--postprocessing", "found/postprocessing.json"]
    command = [sys.executable, str(ROOT / "scripts" / "postprocess.py"), *words]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True, check=True)
    assert "2 masks in again, 1 of them changed." in done.stdout
    assert "keeps the largest component of lesion" in done.stderr
    for name in ("e", "f"):
        np.testing.assert_array_equal(
            read_label_volume(folders / "again" / f"{name}.nii.gz").voxels, truth(3)
        )
    assert not (folders / "again" / "postprocessing.json").exists()


def test_where_nothing_helps_the_masks_stay(folders: Path) -> None:
    write(folders / "sound" / "a.nii.gz", truth(4))
    options = PostprocessOptions(preds=folders / "sound", output=folders / "clean", lbls=folders / "labels")
    assert run(options) == 0
    assert read_json(folders / "clean" / "postprocessing.json")["steps"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either --lbls"),
        ({"lbls": Path("labels"), "postprocessing": Path("p.json")}, "either --lbls"),
        ({"lbls": Path("labels"), "output": Path("preds")}, "holds the masks themselves"),
        ({"dataset": Path("dataset.json"), "postprocessing": Path("p.json")}, "--dataset"),
    ],
)
def test_what_contradicts_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PostprocessOptions(**{"preds": Path("preds"), "output": Path("clean"), **changes})


def test_arrays_and_unequal_grids_are_named(folders: Path) -> None:
    write(folders / "preds" / "a.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.nii\.gz has shape"):
        run(PostprocessOptions(preds=folders / "preds", output=folders / "x", lbls=folders / "labels"))
    np.save(folders / "preds" / "z.npy", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"z\.npy is an array without a grid"):
        run(PostprocessOptions(preds=folders / "preds", output=folders / "x", lbls=folders / "labels"))
