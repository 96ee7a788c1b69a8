"""Predicted classes as the challenge's files, and the numbers that a training leaves about them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scripts import inference
from scripts.evaluate import main
from scripts.run_options import RunOptions
from utils.storage import read_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.flag("class_output")
def test_classes_of_scans_go_where_they_are_wanted(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    scans = ["-i", str(phantom.raw / "test"), "-o", str(tmp_path / "masks")]
    inference.run(run_options(trained, *scans, "--class_output", str(tmp_path / "classes")))
    assert not list((tmp_path / "masks").glob("*_classification.json"))
    header, *answers = rows(tmp_path / "classes" / "subtype_results.csv")
    assert header == ["Names", "Subtype"]
    assert [name for name, _ in answers] == sorted(
        path.name for path in (tmp_path / "masks").glob("*.nii.gz")
    )
    for name, subtype in answers:
        case_id = name.removesuffix(".nii.gz")
        record = read_json(tmp_path / "classes" / f"{case_id}_classification.json")
        assert record["pred"] == int(subtype) == int(np.argmax(record["probs"]))
        assert record["num_classes"] == len(record["logits"]) == 3
    assert {name for _, name in answers} == {
        row[-3] for row in rows(tmp_path / "masks" / "predictions.csv")[1:]
    }


def test_classes_of_prepared_cases_lie_beside_the_masks_and_can_be_evaluated(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    folder = inference.run(run_options(trained, "-o", str(tmp_path)))
    assert len(rows(folder / "subtype_results.csv")) == 1 + 3
    splits = ["--splits", str(phantom.raw / "splits_final.json")]
    for source in (folder, folder / "subtype_results.csv"):
        main(["classification", str(phantom.raw), str(source), *splits])
        record = read_json(folder / "classification_metrics.json")
        assert record["n_samples"] == 3
    main(["classification", str(phantom.raw / "validation"), str(folder)])
    assert read_json(folder / "classification_metrics.json")["confusion_matrix"] == record["confusion_matrix"]
    main(["whole_organ", str(phantom.raw / "validation"), str(folder), "-np", "1"])
    assert (folder / "whole_pancreas_summary.json").is_file()


def test_a_part_of_the_scans_has_a_table_of_its_own(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    for part in ("1/2", "2/2"):
        words = ["-i", str(phantom.raw / "test"), "-o", str(tmp_path), "--shard", part]
        inference.run(run_options(trained, *words))
    assert [len(rows(tmp_path / f"subtype_results_{part}of2.csv")) for part in (1, 2)] == [2, 2]
    assert not (tmp_path / "subtype_results.csv").exists()


def test_a_training_ends_with_the_fields_of_the_reference_systems(trained: Path) -> None:
    metrics = read_json(trained / "final_metrics.json")
    classes = metrics["classification"]
    assert metrics["val_f1_macro"] == classes["macro_f1"]
    assert metrics["confusion_matrix"] == classes["confusion"]["counts"]
    assert sum(metrics[f"class_{index}_support"] for index in range(3)) == 3
    for index, name in enumerate(("pancreas", "lesion"), start=1):
        assert metrics[f"val_dsc_class{index}_mean"] == metrics["structures"][name]["dsc_mean"]
        assert 0 <= metrics[f"val_nsd_class{index}_mean"] <= 1
        assert metrics[f"val_avd_class{index}_mean"] >= 0
    assert metrics["val_dsc_whole_pancreas_mean"] == metrics["structures"]["whole organ"]["dsc_mean"]
    assert {"accuracy", "macro_f1", "reason"} <= set(metrics["volume_baseline"])
    assert {"val_lr_plus", "val_ece", "val_brier_score", "val_auroc", "val_balanced_accuracy"} <= set(metrics)
