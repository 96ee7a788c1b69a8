"""The notebooks, run from the first cell to the last on generated data, and what is stored of them."""

import csv
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from data_preprocessing.brats_phantom import BratsPhantomOptions, write_brats_phantom
from data_preprocessing.dataset import read_dataset
from data_preprocessing.phantom import PhantomOptions, write_phantom
from data_preprocessing.volume_io import read_label_volume, read_volume
from utils.prepared_folder import read_plan
from utils.storage import read_json

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA_VARIABLES = ("DATA_DIR", "BRATS_DIR", "BRATS_TEST_DIR")
JUPYTER_VARIABLES = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
CELL_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An executed notebook: its folder of files, and its cells with their output."""

    work: Path
    notebook: nbformat.NotebookNode

    def text_of(self, cell_id: str) -> str:
        cell = next(cell for cell in self.notebook.cells if cell.id == cell_id)
        parts = [
            output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
        ]
        return "".join(parts)


def execute(name: str, work: Path, *, until: str | None = None, **variables: Path) -> Finished:
    """Run a notebook up to a cell (default: all) with its files in `work`; a cell that raises is an error."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    if until is not None:
        last = [cell.id for cell in notebook.cells].index(until)
        notebook.cells = notebook.cells[: last + 1]
    notebook.cells.append(nbformat.v4.new_code_cell("print(sys.executable)", id="python"))
    work.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        for variable in DATA_VARIABLES:
            environment.delenv(variable, raising=False)
        for variable, value in {"WORK_DIR": work, **variables}.items():
            environment.setenv(variable, str(value))
        for variable in JUPYTER_VARIABLES:
            environment.setenv(variable, str(work / "jupyter"))
        where = {"metadata": {"path": str(ROOT / "notebooks")}}
        NotebookClient(notebook, timeout=CELL_SECONDS, resources=where).execute()
    done = Finished(work=work, notebook=notebook)
    assert Path(done.text_of("python").strip()) == Path(sys.executable)
    return done


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def dice_of(model: Path) -> dict[str, float]:
    """Mean Dice of the held-out cases by structure."""
    structures = read_json(model / "final_metrics.json")["structures"]
    return {name: scores["dsc_mean"] for name, scores in structures.items()}


def count_pictures(done: Finished) -> int:
    outputs = [output for cell in done.notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


# --- BraTS21.ipynb: one test for the whole run, so that several test processes do not repeat it -------------


@pytest.mark.story
def test_brats_notebook_leads_from_the_challenges_folders_to_masks_with_its_values(tmp_path: Path) -> None:
    done = execute("BraTS21.ipynb", tmp_path)
    plan = read_plan(tmp_path / "prepared" / "11_3d")
    assert (plan.num_channels, plan.foreground_channel) == (5, True)
    check_regions(dice_of(tmp_path / "model"))
    assert "whole tumour" in done.text_of("evaluate")
    assert count_pictures(done) == 1
    check_region_volumes(rows_of(tmp_path / "predictions" / "predictions.csv"))
    check_submission(tmp_path / "submission", tmp_path / "brats" / "test")


def check_regions(dice: dict[str, float]) -> None:
    assert {"whole tumour", "tumour core", "enhancing tumour"} <= set(dice)
    assert dice["whole tumour"] > 0.7
    assert dice["tumour core"] > 0.7
    assert dice["enhancing tumour"] > 0.6


def check_region_volumes(rows: list[dict[str, str]]) -> None:
    assert len(rows) == 2
    for row in rows:
        volumes = [float(value) for name, value in row.items() if name != "case"]
        assert volumes == sorted(volumes, reverse=True)  # each region lies within the one before
        assert volumes[-1] > 0


def check_submission(submission: Path, scans: Path) -> None:
    """Masks with BraTS's values on the grids of its scans."""
    masks = sorted(submission.glob("*.nii.gz"))
    assert len(masks) == 2
    for path in masks:
        case = path.name.removesuffix(".nii.gz")
        scan = read_volume(scans / case / f"{case}_flair.nii.gz")
        mask = read_label_volume(path)
        values = set(np.unique(mask.voxels))
        assert {0, 2, 4} <= values <= {0, 1, 2, 4}
        assert mask.voxels.shape == scan.voxels.shape
        assert np.array_equal(mask.affine, scan.affine)


@pytest.mark.story
def test_brats_folders_of_the_user_are_read_where_they_lie(tmp_path: Path) -> None:
    own = {"BRATS_DIR": tmp_path / "own" / "train", "BRATS_TEST_DIR": tmp_path / "own" / "test"}
    write_brats_phantom(own["BRATS_DIR"], own["BRATS_TEST_DIR"], BratsPhantomOptions(num_train=2, num_test=1))
    execute("BraTS21.ipynb", tmp_path / "work", until="convert", **own)
    description = read_json(tmp_path / "work" / "raw" / "Task11_BraTS2021_train" / "dataset.json")
    assert (description["numTraining"], len(description["test"])) == (2, 1)
    assert not (tmp_path / "work" / "brats").exists()


# --- custom_dataset.ipynb ----------------------------------------------------------------------------------


@pytest.mark.story
def test_custom_notebook_leads_from_scans_and_a_table_to_masks_and_classes(tmp_path: Path) -> None:
    done = execute("custom_dataset.ipynb", tmp_path)
    plan = read_plan(tmp_path / "prepared" / "042_3d")
    assert [stage.channels for stage in plan.stages] == [8, 16, 24, 32]
    assert "filters 8-16-24-32 (plan)" in done.text_of("train")  # training took the edited plan
    assert dice_of(tmp_path / "model")["whole organ"] > 0.6
    check_report(tmp_path / "report")
    assert "macro-F1" in done.text_of("scores")
    assert count_pictures(done) == 1
    check_new_scans(tmp_path / "predictions", tmp_path / "scans" / "new")
    assert read_plan(tmp_path / "prepared" / "042_2d").patch[0] == 1
    assert set(dice_of(tmp_path / "model_2d")) == {"pancreas", "lesion", "whole organ"}


def check_report(report: Path) -> None:
    assert (report / "report.html").stat().st_size > 10_000
    confusion = np.array(read_json(report / "classification_metrics.json")["confusion"]["counts"])
    assert (confusion.shape, confusion.sum()) == ((3, 3), 3)
    assert set(read_json(report / "summary.json")["mean"]) == {"1", "2"}


def check_new_scans(predictions: Path, scans: Path) -> None:
    """A mask, a class and volumes for each scan."""
    rows = rows_of(predictions / "predictions.csv")
    assert {f"{row['case']}.nii.gz" for row in rows} == {path.name for path in scans.iterdir()}
    for row in rows:
        assert sum(float(row[f"prob_{name}"]) for name in "012") == pytest.approx(1, abs=1e-5)
        assert row["predicted_class"] in "012"
        assert float(row["volume_ml_pancreas"]) > 0
        assert (predictions / f"{row['case']}.nii.gz").is_file()


@pytest.mark.story
def test_custom_folder_of_the_user_is_read_where_it_lies(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for folder in ("images", "masks"):
        (own / folder).mkdir(parents=True)
    phantom = read_dataset(write_phantom(tmp_path, PhantomOptions(size="tiny", num_train=3, n_jobs=1)))
    for case in phantom.training:
        assert case.label is not None
        shutil.copy(case.images[0], own / "images" / f"{case.case_id}.nii.gz")
        shutil.copy(case.label, own / "masks" / f"{case.case_id}.nii.gz")
    lines = [f"{case.case_id},{phantom.class_names[case.class_target or 0]}" for case in phantom.training]
    (own / "classes.csv").write_text("\n".join(["case,class", *lines]))
    execute("custom_dataset.ipynb", tmp_path / "work", until="dataset", DATA_DIR=own)
    dataset = read_dataset(tmp_path / "work" / "raw" / "Dataset042_MyScans")
    classes = {case.case_id: case.class_target for case in phantom.training}
    assert {case.case_id: case.class_target for case in dataset.training} == classes
    assert not (tmp_path / "work" / "scans").exists()


# --- what is stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_stored_notebook_is_valid_and_was_never_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_stored_notebook_names_no_folder_of_one_machine(path: Path) -> None:
    text = json.dumps(json.loads(path.read_text(encoding="utf-8")))
    assert not [folder for folder in ("/home/", "/tmp/", "/Users/", str(ROOT)) if folder in text]


def test_both_notebooks_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == ["BraTS21.ipynb", "custom_dataset.ipynb"]
