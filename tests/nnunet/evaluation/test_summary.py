"""The summary over cases, and the shape of nnU-Net's summary.json."""

from pathlib import Path

import numpy as np
import pytest

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.overlap import CaseOverlap, CaseSource, evaluate_case, overlap_rules
from nnunet.evaluation.summary import (
    SUMMARY_FILE,
    WHOLE_ORGAN_FILE,
    nnunet_summary,
    ranked_cases,
    summarise_segmentation,
    write_summaries,
)
from utils.storage import read_json

RULES = overlap_rules(["background", "pancreas", "lesion"])
FEW = Resampling(num_resamples=100)


def case(name: str, truth: list[int], predicted: list[int]) -> CaseOverlap:
    source = CaseSource(
        voxel_ml=0.001, reference_file=f"lbls/{name}.nii.gz", prediction_file=f"preds/{name}.nii.gz"
    )
    return evaluate_case(name, np.array([[truth]]), np.array([[predicted]]), RULES, source=source)


PERFECT = case("perfect", [0, 1, 2], [0, 1, 2])
NO_LESION = case("no_lesion", [0, 1, 1], [0, 1, 0])
MISSED = case("missed", [1, 2, 2], [1, 0, 0])


def test_a_structure_is_averaged_over_the_cases_that_have_it() -> None:
    summary = summarise_segmentation([PERFECT, NO_LESION, MISSED], resampling=FEW)
    pancreas, lesion = summary.structures
    assert pancreas.mean_dice == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert (lesion.num_cases, lesion.mean_dice, lesion.min_dice) == (2, 0.5, 0.0)
    assert summary.foreground_mean_dice == pytest.approx((pancreas.mean_dice + lesion.mean_dice) / 2)


def test_the_interval_holds_the_mean() -> None:
    summary = summarise_segmentation([PERFECT, NO_LESION, MISSED], resampling=FEW)
    for item in (*summary.structures, summary.whole_organ):
        assert item.dice_interval.low <= item.mean_dice <= item.dice_interval.high
    assert summary.foreground_interval.low < summary.foreground_mean_dice < summary.foreground_interval.high


def test_the_summary_has_nnunets_keys() -> None:
    content = nnunet_summary([PERFECT, MISSED])
    assert set(content) == {"foreground_mean", "mean", "metric_per_case"}
    assert set(content["mean"]) == {"1", "2"}
    row = content["metric_per_case"][1]
    assert set(row) == {"metrics", "prediction_file", "reference_file"}
    assert row["metrics"]["2"] == {
        "Dice": 0.0,
        "IoU": 0.0,
        "TP": 0,
        "FP": 0,
        "FN": 2,
        "TN": 1,
        "n_pred": 0,
        "n_ref": 2,
    }
    assert content["mean"]["2"]["n_ref"] == 1.5


def test_the_foreground_mean_is_null_where_a_label_never_occurs(tmp_path: Path) -> None:
    write_summaries(tmp_path, [NO_LESION])
    content = read_json(tmp_path / SUMMARY_FILE)
    assert content["metric_per_case"][0]["metrics"]["2"]["Dice"] is None
    assert content["foreground_mean"]["Dice"] is None
    assert content["foreground_mean"]["n_ref"] == 1.0


def test_the_whole_organ_is_stored_apart_in_the_same_shape(tmp_path: Path) -> None:
    write_summaries(tmp_path, [PERFECT, MISSED])
    content = read_json(tmp_path / WHOLE_ORGAN_FILE)
    assert list(content["mean"]) == ["(1, 2)"]
    assert content["mean"]["(1, 2)"]["Dice"] == pytest.approx((1 + 0.5) / 2)


def test_cases_are_ranked_by_mean_dice_and_those_without_one_are_left_out() -> None:
    nothing = case("nothing", [0, 0, 0], [0, 0, 0])
    ranked = ranked_cases([nothing, MISSED, PERFECT, NO_LESION])
    assert [item.case_id for item in ranked] == ["perfect", "no_lesion", "missed"]


def test_scores_of_the_whole_set_come_without_a_case() -> None:
    scores = summarise_segmentation([PERFECT, MISSED], resampling=FEW).to_scores()
    means = {(s.target, s.metric): s.value for s in scores if s.case_id is None}
    assert means[("lesion", "dice")] == 0.5
    assert {s.case_id for s in scores} == {None, "perfect", "missed"}


def test_a_summary_of_no_case_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        summarise_segmentation([])
