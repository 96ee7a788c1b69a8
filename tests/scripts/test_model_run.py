"""Finding a checkpoint, and the table of predictions."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.model_run import (
    PredictionRow,
    find_checkpoint,
    planned_spacing_mm,
    planned_voxel_ml,
    prediction_row,
    write_predictions_table,
)
from utils.contracts import Footprint, Plan, Prediction
from utils.errors import DatasetError


def touch(path: Path, seconds: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_the_newest_best_checkpoint_wins_over_the_last_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    touch(folder / "epoch=90.ckpt", 100)
    newest = touch(folder / "epoch=4.ckpt", 200)
    touch(folder / "last.ckpt", 300)
    assert find_checkpoint(tmp_path) == newest


def test_without_a_best_checkpoint_the_last_one_is_taken(tmp_path: Path) -> None:
    last = touch(tmp_path / "checkpoints" / "last.ckpt", 1)
    assert find_checkpoint(tmp_path) == last


def test_no_checkpoint_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no checkpoint"):
        find_checkpoint(tmp_path)


def test_volumes_are_voxels_times_their_size_in_millilitres(make_plan: Callable[..., Plan]) -> None:
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[:5], mask[0, 0] = 1, 2
    prediction = Prediction(
        case_id="a", label_probs=np.zeros((3, 1, 1, 1)), class_probs=np.array([0.25, 0.75])
    )
    row = prediction_row(prediction, mask, (1.0, 2.0, 5.0), make_plan())
    assert row == PredictionRow(case_id="a", class_probs=(0.25, 0.75), volumes_ml=(4.9, 0.1))


def test_resampling_changes_the_size_of_a_voxel_and_padding_does_not() -> None:
    footprint = Footprint(
        native_shape=(20, 20, 12),
        native_spacing_mm=(2.0, 3.0, 5.0),
        orientation="LPS",
        axis_order=(0, 1, 2),
        oriented_shape=(12, 20, 20),
        oriented_spacing_mm=(5.0, 3.0, 2.0),
        crop_start=(1, 0, 0),
        crop_stop=(11, 20, 20),
        cropped_shape=(10, 20, 20),
        planned_shape=(20, 20, 10),
        padding_before=(3, 0, 0),
        padding_after=(3, 0, 0),
        qform_code=1,
        sform_code=1,
        affine=tuple(tuple(row) for row in np.eye(4).tolist()),
    )
    assert planned_spacing_mm(footprint) == pytest.approx((2.5, 3.0, 4.0))
    # 10 * 20 * 20 voxels of 30 mm3 became 20 * 20 * 10.
    assert planned_voxel_ml(footprint) == pytest.approx(0.030)
    assert planned_voxel_ml(replace(footprint, planned_shape=(10, 10, 10))) == pytest.approx(0.120)


def test_the_table_names_classes_and_labels(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    rows = [PredictionRow(case_id="a", class_probs=(0.25, 0.75), volumes_ml=(4.9, 0.1))]
    write_predictions_table(tmp_path / "predictions.csv", rows, make_plan())
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8") == (
        "case,prob_benign,prob_malignant,predicted_class,volume_ml_organ,volume_ml_lesion\n"
        "a,0.250000,0.750000,malignant,4.9000,0.1000\n"
    )


def test_a_table_without_classes_has_volumes_only(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    rows = [PredictionRow(case_id="a,b", class_probs=(), volumes_ml=(1.0, 0.0))]
    write_predictions_table(tmp_path / "predictions.csv", rows, make_plan())
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8") == (
        'case,volume_ml_organ,volume_ml_lesion\n"a,b",1.0000,0.0000\n'
    )


def test_with_regions_a_volume_is_that_of_all_labels_of_a_region(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan(regions=((1, 2), (2,)), region_names=("whole", "core"), num_classes=0)
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[:5], mask[0, 0] = 1, 2
    prediction = Prediction(case_id="a", label_probs=np.zeros((2, 1, 1, 1)))
    row = prediction_row(prediction, mask, (1.0, 2.0, 5.0), plan)
    assert row.volumes_ml == (5.0, 0.1)
    write_predictions_table(tmp_path / "predictions.csv", [row], plan)
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8") == (
        "case,volume_ml_whole,volume_ml_core\na,5.0000,0.1000\n"
    )
