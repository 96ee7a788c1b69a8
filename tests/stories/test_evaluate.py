"""`python evaluate.py` from a folder of masks to the report, on a dataset made here."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import write_volume
from scripts.evaluate import EvaluateOptions, main, run
from utils.errors import DatasetError, UserError
from utils.storage import read_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
CASES = ("c1", "c2", "c3", "c4")
CLASSES = ("benign", "malignant", "malignant", "benign")
SHAPE = (12, 10, 6)  # (x, y, z) of the files
AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])


def mask(size: int, start: int = 2) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[start : start + size, 2:8, 1:4] = 1
    voxels[start, 3:5, 2] = 2
    return voxels


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=1, spacing_mm=(1.0, 1.0, 5.0))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "Dataset042_Made"
    for index, case_id in enumerate(CASES):
        image = np.random.default_rng(index).normal(size=SHAPE).astype(np.float32)
        write(root / "imagesTr" / f"{case_id}_0000.nii.gz", image)
        write(root / "labelsTr" / f"{case_id}.nii.gz", mask(4 + index))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1, "lesion": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
        "classification": {
            "name": "malignancy",
            "classes": ["benign", "malignant"],
            "source": "classes.csv",
            "case_column": "case",
            "class_column": "class",
        },
    }
    (root / "dataset.json").write_text(json.dumps(description))
    rows = [f"{case_id},{name}" for case_id, name in zip(CASES, CLASSES, strict=True)]
    (root / "classes.csv").write_text("\n".join(["case,class", *rows]) + "\n")
    return root


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """c1 and c2 are perfect, the others lie one voxel off; all classes but that of c4 are right."""
    folder = tmp_path / "preds"
    for index, case_id in enumerate(CASES):
        write(folder / f"{case_id}.nii.gz", mask(4 + index, start=2 if index < 2 else 3))
    probs = ("0.9,0.1,benign", "0.2,0.8,malignant", "0.3,0.7,malignant", "0.4,0.6,malignant")
    rows = [f"{case_id},{row}" for case_id, row in zip(CASES, probs, strict=True)]
    (folder / "predictions.csv").write_text(
        "\n".join(["case,prob_benign,prob_malignant,predicted_class", *rows])
    )
    return folder


def options(predictions: Path, dataset: Path, **changes: object) -> EvaluateOptions:
    return EvaluateOptions(**{"preds": predictions, "lbls": dataset, "n_jobs": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.flag("evaluate:preds", "evaluate:lbls", "evaluate:results")
def test_the_command_writes_summary_table_classes_and_report(predictions: Path, dataset: Path) -> None:
    results = dataset.parent / "results"
    command = [sys.executable, str(ROOT / "evaluate.py"), "--preds", str(predictions), "--lbls", str(dataset)]
    done = subprocess.run(
        [*command, "--results", str(results), "--n_jobs", "1"], capture_output=True, text=True, check=True
    )
    assert "report.html" in done.stdout
    assert "pancreas" in done.stdout
    summary = read_json(results / "summary.json")
    assert set(summary["mean"]) == {"1", "2"}
    assert summary["metric_per_case"][0]["metrics"]["1"]["Dice"] == 1.0
    assert summary["metric_per_case"][0]["reference_file"].endswith("labelsTr/c1.nii.gz")
    assert 0 < summary["foreground_mean"]["Dice"] < 1
    classes = read_json(results / "classification_metrics.json")
    assert classes["confusion"]["counts"] == [[1, 1], [0, 2]]
    html = (results / "report.html").read_text(encoding="utf-8")
    assert "Dataset042_Made" in html
    assert html.count("data:image/png") == 1 + 3  # the distribution; best, median and worst case


def test_volumes_are_millilitres_of_the_files_spacing(predictions: Path, dataset: Path) -> None:
    run(options(predictions, dataset))
    with (predictions / "metrics.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["label"] == "whole organ")
    assert float(row["volume_ref_ml"]) == pytest.approx(4 * 6 * 3 * 5 / 1000)


def test_npy_masks_and_probabilities_score_as_the_nifti_masks_do(predictions: Path, dataset: Path) -> None:
    folder = dataset.parent / "npy"
    folder.mkdir()
    for index, case_id in enumerate(CASES):
        labels = mask(4 + index, start=2 if index < 2 else 3).transpose()
        probs = np.stack([labels == value for value in range(3)]).astype(np.float32)
        np.save(folder / f"{case_id}.npy", labels if index % 2 else probs)
    run(options(predictions, dataset))
    run(options(folder, dataset))
    nifti, npy = (read_json(path / "summary.json") for path in (predictions, folder))
    assert npy["mean"] == nifti["mean"]
    assert not (folder / "classification_metrics.json").exists()


def test_a_plain_folder_of_masks_takes_its_names_from_the_dataset_above(
    predictions: Path, dataset: Path
) -> None:
    report = run(options(predictions, dataset / "labelsTr"))
    assert "pancreas" in report.read_text(encoding="utf-8")


def test_without_a_description_labels_are_called_by_their_values(predictions: Path, tmp_path: Path) -> None:
    for index, case_id in enumerate(CASES):
        write(tmp_path / "bare" / "masks" / f"{case_id}.nii.gz", mask(4 + index))
    run(options(predictions, tmp_path / "bare" / "masks"))
    with (predictions / "metrics.csv").open(newline="") as stream:
        assert [row["label"] for row in csv.DictReader(stream)][:3] == ["1", "2", "whole organ"]


def test_a_missing_prediction_stops_the_run_and_names_the_case(predictions: Path, dataset: Path) -> None:
    (predictions / "c3.nii.gz").unlink()
    with pytest.raises(DatasetError, match="1 of 4 cases have no prediction: c3"):
        run(options(predictions, dataset))
    assert not (predictions / "summary.json").exists()


@pytest.mark.flag("evaluate:allow_missing")
def test_an_allowed_missing_prediction_lowers_the_mean(predictions: Path, dataset: Path) -> None:
    run(options(predictions, dataset))
    complete = read_json(predictions / "summary.json")["foreground_mean"]["Dice"]
    (predictions / "c1.nii.gz").unlink()
    report = run(options(predictions, dataset, allow_missing=True))
    failed = read_json(predictions / "summary.json")["foreground_mean"]["Dice"]
    assert failed == pytest.approx(complete - 1 / 4)
    assert "scored 0: c1" in report.read_text(encoding="utf-8")


@pytest.mark.flag("evaluate:splits", "evaluate:fold")
def test_a_split_scores_the_validation_cases_of_its_fold(predictions: Path, dataset: Path) -> None:
    (predictions / "c3.nii.gz").unlink()
    splits = dataset / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["c3"], "val": ["c1"]}, {"train": ["c3"], "val": ["c2", "c4"]}]))
    run(options(predictions, dataset, splits=splits, fold=1))
    files = [row["reference_file"] for row in read_json(predictions / "summary.json")["metric_per_case"]]
    assert [Path(file).name for file in files] == ["c2.nii.gz", "c4.nii.gz"]


def test_a_prediction_on_another_grid_is_an_error_in_millimetres(predictions: Path, dataset: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 7.0
    write(predictions / "c2.nii.gz", mask(5), shifted)
    write(predictions / "c3.nii.gz", mask(6)[:-1])
    with pytest.raises(DatasetError) as caught:
        run(options(predictions, dataset))
    assert "c2.nii.gz lies 7 mm from its reference" in str(caught.value)
    assert "c3.nii.gz has shape (11, 10, 6) but the reference has (12, 10, 6)" in str(caught.value)


def test_a_case_that_the_class_table_lacks_is_named(predictions: Path, dataset: Path) -> None:
    table = predictions / "predictions.csv"
    table.write_text("\n".join(line for line in table.read_text().split("\n") if not line.startswith("c2")))
    with pytest.raises(DatasetError, match="lacks 1 cases: c2"):
        run(options(predictions, dataset))


@pytest.mark.parametrize(("rule", "expected"), [("nan", None), ("one", 1.0)])
@pytest.mark.flag("evaluate:empty")
def test_the_rule_for_empty_labels_is_an_option(
    predictions: Path, dataset: Path, rule: str, expected: float | None
) -> None:
    without_lesion = np.minimum(mask(4), 1)
    write(dataset / "labelsTr" / "c1.nii.gz", without_lesion)
    write(predictions / "c1.nii.gz", without_lesion)
    main(["--preds", str(predictions), "--lbls", str(dataset), "--empty", rule, "--n_jobs", "1"])
    first = read_json(predictions / "summary.json")["metric_per_case"][0]
    assert first["metrics"]["2"]["Dice"] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--n_jobs", "0"], "--n_jobs is 0"), (["--seed", "-1"], "--seed should be at least 0, got -1")],
)
def test_a_number_that_means_nothing_is_refused(
    predictions: Path, dataset: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(["--preds", str(predictions), "--lbls", str(dataset), *words])


@pytest.mark.flag("evaluate:dataset")
def test_names_come_from_a_description_that_lies_elsewhere(
    predictions: Path, dataset: Path, tmp_path: Path
) -> None:
    masks = (dataset / "labelsTr").rename(tmp_path / "apart")
    main(["--preds", str(predictions), "--lbls", str(masks), "--dataset", str(dataset), "--n_jobs", "1"])
    with (predictions / "metrics.csv").open(newline="") as stream:
        assert [row["label"] for row in csv.DictReader(stream)][:2] == ["pancreas", "lesion"]


@pytest.mark.flag("evaluate:logs")
def test_the_report_shows_the_curve_of_a_log(predictions: Path, dataset: Path) -> None:
    without = run(options(predictions, dataset)).read_text(encoding="utf-8")
    line = {"type": "LOG", "step": [0], "data": {"val/dsc": 0.5}}
    log = dataset.parent / "logs.json"
    log.write_text("\n".join("DLLL " + json.dumps({**line, "step": [epoch]}) for epoch in (0, 1)) + "\n")
    report = run(options(predictions, dataset, logs=log)).read_text(encoding="utf-8")
    assert report.count("data:image/png") == without.count("data:image/png") + 1


@pytest.mark.flag("evaluate:seed")
def test_another_seed_draws_other_intervals_and_the_same_one_the_same(
    predictions: Path, dataset: Path
) -> None:
    found = []
    for seed in (0, 0, 1):
        run(options(predictions, dataset, seed=seed))
        found.append(read_json(predictions / "classification_metrics.json")["intervals"])
    assert found[0] == found[1] != found[2]
