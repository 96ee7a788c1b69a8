"""Scores of class probabilities: by hand, against scikit-learn, and at probabilities of exactly 0 and 1."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from nnunet.evaluation.class_probabilities import (
    AreaUnderCurve,
    adaptive_calibration_error,
    auc_per_class,
    brier_per_case,
    checked_probabilities,
    class_wise_calibration_error,
    expected_calibration_error,
    mean_auc,
    nll_per_case,
    probability_scores,
    weighted_calibration_error,
)
from utils.errors import DatasetError

GENERATOR = np.random.default_rng(3)
TARGET = GENERATOR.integers(0, 3, 80)
PROBS = GENERATOR.dirichlet(np.ones(3), 80)
NAMES = ("a", "b", "c")


def test_brier_nll_and_auroc_are_scikit_learns() -> None:
    labels = np.arange(3)
    assert brier_per_case(TARGET, PROBS).mean() == pytest.approx(
        brier_score_loss(TARGET, PROBS, labels=labels, scale_by_half=False)
    )
    assert nll_per_case(TARGET, PROBS).mean() == pytest.approx(log_loss(TARGET, PROBS, labels=labels))
    support = np.bincount(TARGET).tolist()
    aucs = auc_per_class(TARGET, PROBS)
    for average, weights in (("macro", None), ("weighted", support)):
        expected = roc_auc_score(TARGET, PROBS, multi_class="ovr", average=average)
        assert mean_auc(aucs, NAMES, weights).value == pytest.approx(expected)


def test_a_certain_answer_is_finite_right_or_wrong() -> None:
    certain = np.eye(2)
    assert nll_per_case(np.array([0, 1]), certain).tolist() == [0, 0]
    assert nll_per_case(np.array([1, 0]), certain) == pytest.approx([36.04, 36.04], abs=0.01)
    wrong = probability_scores(np.array([1, 0]), certain)
    assert (wrong.brier, wrong.root_brier, wrong.ece, wrong.ece_adaptive) == (2, 2**0.5, 1, 1)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # 0.7 lies in (0.6, 0.7] with one right answer and 0.65 in the same bin: one bin, so the gaps cancel.
    probs = np.array([[0.7, 0.3], [0.65, 0.35]])
    assert expected_calibration_error(np.array([0, 1]), probs, 10) == pytest.approx(abs(-0.3 + 0.65) / 2)
    apart = np.array([[0.71, 0.29], [0.65, 0.35]])
    assert expected_calibration_error(np.array([0, 1]), apart, 10) == pytest.approx((0.29 + 0.65) / 2)


def test_the_class_wise_error_sees_what_the_top_label_hides() -> None:
    # The top label is right half of the time, as it says; the others share the rest unequally.
    probs = np.tile([0.5, 0.25, 0.25], (4, 1))
    target = np.array([0, 0, 1, 1])
    assert expected_calibration_error(target, probs) == 0
    assert class_wise_calibration_error(target, probs) == pytest.approx((0 + 0.25 + 0.25) / 3)


def test_the_adaptive_error_does_not_depend_on_the_order_of_ties() -> None:
    probs = np.array([[0.8, 0.2]] * 6 + [[0.6, 0.4]] * 6)
    target = np.array([0, 0, 0, 1, 1, 1] * 2)
    shuffled = np.random.default_rng(0).permutation(12)
    assert adaptive_calibration_error(target, probs, 5) == pytest.approx((0.3 + 0.1) / 2)
    assert adaptive_calibration_error(target[shuffled], probs[shuffled], 5) == pytest.approx(0.2)


def test_the_calibration_error_of_a_resample_is_that_of_repeated_cases() -> None:
    weights = GENERATOR.integers(0, 4, (1, 80))
    repeated = np.repeat(np.arange(80), weights[0])
    expected = expected_calibration_error(TARGET[repeated], PROBS[repeated])
    assert weighted_calibration_error(TARGET, PROBS)(weights.astype(float))[0] == pytest.approx(expected)


def test_the_mean_auroc_of_two_classes_is_that_of_the_second() -> None:
    aucs = (AreaUnderCurve(value=0.2), AreaUnderCurve(value=0.9))
    assert mean_auc(aucs, ("a", "b")).value == 0.9


@pytest.mark.parametrize(
    "row", [[0.5, 0.4, 0.0], [1.2, -0.2, 0.0], [np.nan, 0.5, 0.5], [2.0, 0.0, -1.0]], ids=str
)
def test_rows_that_are_no_probabilities_are_named(row: list[float]) -> None:
    with pytest.raises(DatasetError, match="row 1 is"):
        checked_probabilities(np.array([[1.0, 0.0, 0.0], row]), 2, NAMES)


def test_rounded_rows_are_scaled_to_one() -> None:
    probs = checked_probabilities(np.array([[0.333, 0.333, 0.3335]]), 1, NAMES)
    assert probs.sum() == pytest.approx(1, abs=1e-12)
