"""Class answers of several folds beside the volume alone, by pencil."""

import math

import numpy as np
import pytest

from benchmarks.class_folds import BRANCH, PREDICTED, TRUE, HeldOut, compare, mean_fold_auc


def held_out(fold: int, patient: int, target: int, branch: float, volume: float) -> HeldOut:
    scores = {BRANCH: branch, PREDICTED: volume, TRUE: volume}
    return HeldOut(fold=fold, patient=str(patient), target=target, scores=scores, dice=0.5)


def test_cases_of_different_folds_are_never_ranked_against_each_other() -> None:
    # Pooled, the second fold's benign cases would stand above the first fold's malignant ones.
    cases = [
        held_out(0, 0, 0, 0.1, 1),
        held_out(0, 1, 1, 0.2, 1),
        held_out(1, 2, 0, 0.8, 1),
        held_out(1, 3, 1, 0.9, 1),
    ]
    assert mean_fold_auc(cases, BRANCH) == 1
    assert mean_fold_auc(cases, PREDICTED) == 0.5


def test_a_fold_that_lost_a_class_has_no_mean() -> None:
    cases = [held_out(0, 0, 0, 0.1, 1), held_out(0, 1, 1, 0.2, 1)]
    assert math.isnan(mean_fold_auc(cases, BRANCH, np.array([0, 0])))


def test_the_lead_is_paired_and_its_interval_holds_no_zero_where_every_patient_agrees() -> None:
    cases = [
        held_out(fold, 10 * fold + patient, patient % 2, 0.1 + 0.8 * (patient % 2), 1 - patient % 2)
        for fold in range(2)
        for patient in range(10)
    ]
    result = compare(cases)
    lead = result["branch_minus"][PREDICTED]
    assert result["auc"][BRANCH]["mean_of_folds"] == 1
    assert result["auc"][TRUE]["mean_of_folds"] == 0
    assert lead["difference"] == 1
    assert lead["interval"]["low"] == pytest.approx(1)
