"""`python scripts/ensemble_folders.py` from folders with probabilities to masks and classes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import read_label_volume, write_volume
from nnunet.evaluation.class_outputs import ClassAnswer, write_class_files
from scripts.ensemble_folders import EnsembleOptions, run
from utils.errors import DatasetError, UserError
from utils.storage import read_json, write_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (7, 5, 3)  # x, y, z
AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
NAMES = {"background": 0, "pancreas": 1, "lesion": 2}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "lesion": 2}, "regions_class_order": [1, 2]}


def dataset_json(folder: Path, **values: object) -> None:
    record = {"labels": NAMES, "channel_names": {"0": "CT"}, "numTraining": 0, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", record | values)


def random_probabilities(seed: int, *, regions: bool = False) -> np.ndarray:
    """(C, x, y, z): three labels that add up to 1, or two regions, one inside the other."""
    values = np.random.default_rng(seed).random((2 if regions else 3, *SHAPE)).astype(np.float16)
    if regions:
        return np.stack([values.max(axis=0), values.min(axis=0)])
    return values / values.sum(axis=0)


def mask_of(probs: np.ndarray, *, regions: bool = False) -> np.ndarray:
    if regions:
        return np.where(probs[1] > 0.5, 2, (probs[0] > 0.5) * 1).astype(np.uint8)
    return probs.argmax(axis=0).astype(np.uint8)


def write_case(folder: Path, case_id: str, probs: np.ndarray, mask: np.ndarray) -> None:
    """As a prediction leaves it: the mask, and the probabilities as (C, z, y, x)."""
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{case_id}.npz", probabilities=probs.transpose(0, 3, 2, 1))
    path = folder / f"{case_id}.nii.gz"
    write_volume(path, mask, affine=AFFINE, qform_code=1, sform_code=1, spacing_mm=(1.0, 1.0, 5.0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with cases x and y; nothing says what they mean."""
    paths = (tmp_path / "a", tmp_path / "b")
    for place, folder in enumerate(paths):
        for number, case_id in enumerate("xy"):
            probs = random_probabilities(10 * place + number)
            write_case(folder, case_id, probs, mask_of(probs))
    return paths


def read_probabilities(folder: Path, case_id: str) -> np.ndarray:
    return np.load(folder / f"{case_id}.npz")["probabilities"].transpose(0, 3, 2, 1)


def test_the_mean_of_folders_is_a_folder_of_the_same_kind(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["-i", "a", "b", "-o", "mean", "--npz"]
    command = [sys.executable, str(ROOT / "scripts" / "ensemble_folders.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "2 masks in mean." in done.stdout
    mean = tmp_path / "mean"
    assert sorted(path.name for path in mean.iterdir()) == [
        "run.json", "x.nii.gz", "x.npz", "y.nii.gz", "y.npz"
    ]  # fmt: skip
    expected = (random_probabilities(0).astype(np.float32) + random_probabilities(10)) / 2
    np.testing.assert_allclose(read_probabilities(mean, "x"), expected, atol=1e-3)
    mask = read_label_volume(mean / "x.nii.gz")
    np.testing.assert_array_equal(mask.voxels, mask_of(expected))
    np.testing.assert_allclose(mask.affine, AFFINE)
    # It can be averaged again; alone twice it stays what it is.
    (tmp_path / "copy").mkdir()
    for path in mean.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert run(EnsembleOptions(preds=(mean, tmp_path / "copy"), output=tmp_path / "again")) == 2
    again = read_label_volume(tmp_path / "again" / "x.nii.gz").voxels
    assert (again == mask.voxels).mean() > 0.95  # but for ties in half precision
    assert not list((tmp_path / "again").glob("*.npz"))  # only where asked for


@pytest.mark.parametrize("told_by", ["option", "folder", "run"])
def test_regions_are_painted_in_their_order(tmp_path: Path, told_by: str) -> None:
    paths = (tmp_path / "a", tmp_path / "b")
    probs = [random_probabilities(seed, regions=True) for seed in (1, 2)]
    for folder, values in zip(paths, probs, strict=True):
        write_case(folder, "x", values, mask_of(values, regions=True))
    if told_by == "run":
        meaning = {
            "label_names": ["background", "organ", "lesion"],
            "regions": [[1, 2], [2]],
            "regions_class_order": [1, 2],
            "class_names": [],
            "ignore_label": None,
        }
        write_json(paths[1] / "run.json", {"meaning": meaning})
    else:
        dataset_json(tmp_path if told_by == "option" else paths[0], **REGIONS)
    dataset = tmp_path / "dataset.json" if told_by == "option" else None
    run(EnsembleOptions(preds=paths, output=tmp_path / "mean", dataset=dataset))
    expected = mask_of((probs[0].astype(np.float32) + probs[1]) / 2, regions=True)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "mean" / "x.nii.gz").voxels, expected)


def test_regions_are_not_taken_for_labels(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        probs = random_probabilities(seed, regions=True)
        write_case(tmp_path / name, "x", probs, np.zeros(SHAPE, np.uint8))
    with pytest.raises(DatasetError, match="do not add up to 1"):
        run(EnsembleOptions(preds=(tmp_path / "a", tmp_path / "b"), output=tmp_path / "mean"))


def test_classes_are_averaged_too(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, first in zip(folders, (0.9, 0.3), strict=True):
        answers = [ClassAnswer(case_id=name, class_probs=(first, 1 - first)) for name in "xy"]
        write_class_files(folder, answers, ("benign", "malignant"))
    output = tmp_path / "mean"
    run(EnsembleOptions(preds=folders, output=output))
    record = read_json(output / "x_classification.json")
    assert record["class_name"] == "benign"
    np.testing.assert_allclose(record["probs"], (0.6, 0.4))
    assert (output / "subtype_results.csv").read_text().splitlines()[1:] == [
        "x.nii.gz,benign", "y.nii.gz,benign"
    ]  # fmt: skip
    (folders[1] / "x_classification.json").write_text("{")
    with pytest.raises(DatasetError, match=r"x_classification\.json"):
        run(EnsembleOptions(preds=folders, output=output))
    write_class_files(folders[1], answers, ("malignant", "benign"))
    with pytest.raises(DatasetError, match="tells the classes"):
        run(EnsembleOptions(preds=folders, output=output))


def test_a_folder_without_class_probabilities_has_no_say_in_the_class(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    answers = [ClassAnswer(case_id=name, class_probs=(0.2, 0.8)) for name in "xy"]
    write_class_files(folders[0], answers, ("benign", "malignant"))
    (folders[1] / "subtype_results.csv").write_text("Names,Subtype\nx.nii.gz,benign\ny.nii.gz,benign\n")
    run(EnsembleOptions(preds=folders, output=tmp_path / "mean"))
    np.testing.assert_allclose(read_json(tmp_path / "mean" / "x_classification.json")["probs"], (0.2, 0.8))


def without_a_case(folder: Path) -> None:
    (folder / "x.npz").unlink()


def of_another_shape(folder: Path) -> None:
    np.savez(folder / "x.npz", probabilities=np.full((3, 3, 5, 6), 1 / 3, np.float32))


def with_turned_axes(folder: Path) -> None:
    probs = random_probabilities(10)
    np.savez(folder / "x.npz", probabilities=probs[:, ::-1, ::-1].transpose(0, 3, 2, 1))


def with_fewer_labels(folder: Path) -> None:
    probs = random_probabilities(10)[:2]
    write_case(folder, "x", probs, np.zeros(SHAPE, np.uint8))


def cut_off(folder: Path) -> None:
    (folder / "x.npz").write_bytes((folder / "x.npz").read_bytes()[:300])


def damaged(folder: Path) -> None:
    content = bytearray((folder / "x.npz").read_bytes())
    content[60:120] = bytes(60)  # of the compressed array: its header stays
    (folder / "x.npz").write_bytes(content)


def not_finite(folder: Path) -> None:
    write_case(folder, "x", np.full((3, *SHAPE), np.nan, np.float32), np.zeros(SHAPE, np.uint8))


def of_another_name(folder: Path) -> None:
    np.savez(folder / "x.npz", softmax=random_probabilities(1))


def empty(folder: Path) -> None:
    for path in folder.glob("*.npz"):
        path.unlink()


def of_other_labels(folder: Path) -> None:
    dataset_json(folder, labels={"background": 0, "lesion": 1, "pancreas": 2})
    dataset_json(folder.parent / "a")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_case, "do not hold masks and probabilities of the same cases: x"),
        (of_another_shape, r"x\.npz: probabilities is float32 \(3, 3, 5, 6\).*\(C, 3, 5, 7\)"),
        (with_turned_axes, r"x\.npz says something else than .*x\.nii\.gz"),
        (with_fewer_labels, r"x\.npz has 2 channels, 3 are expected"),
        (cut_off, r"x\.npz holds no readable array"),
        (damaged, r"x\.npz holds no readable array"),
        (not_finite, r"x\.npz: probabilities has values that are not finite"),
        (of_another_name, r"x\.npz holds no readable array 'probabilities'"),
        (empty, "holds no case with a mask and its probabilities"),
        (of_other_labels, "has another label_names"),
    ],
)
def test_what_does_not_belong_together_is_named(
    folders: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folders[1])
    with pytest.raises(DatasetError, match=message):
        run(EnsembleOptions(preds=folders, output=tmp_path / "mean"))


def test_masks_elsewhere_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path, moved = folders[1] / "x.nii.gz", AFFINE.copy()
    moved[0, 3] = 3
    mask = read_label_volume(path).voxels
    write_volume(path, mask, affine=moved, qform_code=1, sform_code=1, spacing_mm=(1.0, 1.0, 5.0))
    with pytest.raises(DatasetError, match="lies 3 mm from its mask of the first folder"):
        run(EnsembleOptions(preds=folders, output=tmp_path / "mean"))


@pytest.mark.parametrize(
    ("preds", "output", "message"),
    [
        (("a",), "mean", "two or more"),
        (("a", "a"), "mean", "two or more different"),
        (("a", "b"), "b", "is one of --preds"),
    ],
)
def test_what_contradicts_is_refused(preds: tuple[str, ...], output: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnsembleOptions(preds=tuple(map(Path, preds)), output=Path(output))
