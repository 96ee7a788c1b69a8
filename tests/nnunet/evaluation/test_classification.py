"""Classification metrics against hand-made confusion matrices and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.class_probabilities import weighted_auc
from nnunet.evaluation.classification import (
    auc_of_score,
    constant_baselines,
    expected_calibration_error,
    summarise_classes,
    summarise_classification,
)
from utils.contracts import NO_CLASS
from utils.errors import DatasetError

FEW = Resampling(num_resamples=50)
NAMES = ("a", "b", "c")


def probabilities(predicted: list[int], num_classes: int, confidence: float = 0.8) -> np.ndarray:
    rest = (1 - confidence) / (num_classes - 1)
    return np.where(np.eye(num_classes)[predicted] == 1, confidence, rest)


def test_rows_of_the_confusion_matrix_are_the_reference() -> None:
    summary = summarise_classification(np.array([0, 0, 1]), probabilities([0, 1, 1], 2), "ab", resampling=FEW)
    assert summary.confusion == ((1, 1), (0, 1))
    assert summary.to_json()["confusion"]["rows"] == "reference"


def test_numbers_agree_with_scikit_learn_on_random_cases() -> None:
    generator = np.random.default_rng(0)
    target, probs = generator.integers(0, 3, 60), generator.dirichlet(np.ones(3), 60)
    summary = summarise_classification(target, probs, NAMES, resampling=FEW)
    predicted = probs.argmax(axis=1)
    assert summary.macro_f1 == pytest.approx(f1_score(target, predicted, average="macro"))
    assert summary.balanced_accuracy == pytest.approx(balanced_accuracy_score(target, predicted))
    assert summary.auroc.value == pytest.approx(roc_auc_score(target, probs, multi_class="ovr"))
    assert summary.nll == pytest.approx(-np.log(probs[np.arange(60), target]).mean())


def test_constant_predictors_score_what_nine_fifteen_twelve_cases_allow() -> None:
    target = np.repeat([0, 1, 2], [9, 15, 12])
    baselines = constant_baselines(target, NAMES)
    assert [round(item.macro_f1, 4) for item in baselines] == [0.1333, 0.1961, 0.1667]
    assert baselines[1].accuracy == pytest.approx(15 / 36)


def test_a_collapsed_model_equals_its_constant_baseline() -> None:
    target = np.repeat([0, 1, 2], [9, 15, 12])
    summary = summarise_classification(target, probabilities([1] * 36, 3), NAMES, resampling=FEW)
    assert summary.macro_f1 == summary.best_baseline.macro_f1
    assert summary.best_baseline.class_name == "b"
    assert summary.auroc.value == 0.5


def test_a_class_absent_from_both_sides_is_left_out_of_the_macro_mean() -> None:
    summary = summarise_classification(np.array([0, 1]), probabilities([0, 1], 3), NAMES, resampling=FEW)
    assert (summary.macro_f1, summary.macro_f1_classes) == (1.0, 2)
    assert summary.absent_classes == ("c",)
    assert np.isnan(summary.per_class[2].f1)
    assert np.isnan(summary.per_class[2].precision)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    summary = summarise_classification(np.array([0, 0]), probabilities([0, 2], 3), NAMES, resampling=FEW)
    assert summary.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert summary.balanced_accuracy == 0.5


def test_a_class_that_is_never_called_has_precision_zero() -> None:
    summary = summarise_classification(np.array([0, 1]), probabilities([0, 0], 2), "ab", resampling=FEW)
    assert summary.per_class[1].precision == 0
    assert summary.per_class[1].recall == 0


def test_the_auroc_of_one_class_alone_is_undefined_with_a_reason() -> None:
    summary = summarise_classification(np.array([1, 1]), probabilities([1, 0], 2), "ab", resampling=FEW)
    assert summary.auroc.value is None
    assert "no negative case" in summary.auroc.reason
    assert np.isnan(summary.intervals.auroc.low)


def test_the_auroc_names_the_classes_it_could_not_use() -> None:
    summary = summarise_classification(np.array([0, 1]), probabilities([0, 1], 3), NAMES, resampling=FEW)
    assert summary.auroc.value == 1
    assert summary.auroc.reason == "mean of 2 of 3 classes; undefined for c"


def test_a_tie_counts_half_in_the_auroc_of_a_score() -> None:
    assert auc_of_score(np.array([0, 1]), np.array([5.0, 5.0])).value == 0.5
    assert auc_of_score(np.array([0, 0]), np.array([5.0, 5.0])).reason == "no positive case in the reference"


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_auroc_of_a_resample_equals_the_one_of_repeated_cases(num_classes: int) -> None:
    generator = np.random.default_rng(4)
    target = np.arange(20) % num_classes
    probs = generator.dirichlet(np.ones(num_classes), 20).round(1)
    weights = generator.integers(1, 4, (1, 20))
    repeated = np.repeat(np.arange(20), weights[0])
    expected = [
        auc_of_score(target[repeated] == k, probs[repeated, k]).value
        for k in ([1] if num_classes == 2 else range(3))
    ]
    assert weighted_auc(target, probs)(weights.astype(float))[0] == pytest.approx(
        np.mean([value for value in expected if value is not None])
    )


def test_the_brier_score_runs_from_zero_to_two() -> None:
    right = summarise_classification(np.array([0, 1]), np.eye(2), "ab", resampling=FEW)
    wrong = summarise_classification(np.array([1, 0]), np.eye(2), "ab", resampling=FEW)
    assert (right.brier, wrong.brier) == (0, 2)
    assert np.isfinite(wrong.nll)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    assert expected_calibration_error(np.array([0, 1]), probabilities([0, 0], 2, 0.9)) == pytest.approx(0.4)
    assert expected_calibration_error(np.array([0, 1]), np.eye(2)) == 0


def test_cases_of_unknown_class_are_counted_but_not_scored() -> None:
    groups = Resampling(num_resamples=20, groups=("p", "q", "r"))
    target = np.array([0, NO_CLASS, 1])
    summary = summarise_classification(target, probabilities([0, 1, 1], 2), "ab", resampling=groups)
    assert (summary.num_cases, summary.num_unknown, summary.accuracy) == (2, 1, 1.0)


def test_logits_instead_of_probabilities_are_an_error() -> None:
    with pytest.raises(DatasetError, match="not logits"):
        summarise_classification(np.array([0, 1]), np.array([[2.0, -1.0], [0.5, 0.5]]), "ab")


def test_probabilities_of_another_number_of_classes_are_an_error() -> None:
    with pytest.raises(DatasetError, match=r"need \(2, 3\)"):
        summarise_classification(np.array([0, 1]), np.eye(2), NAMES)


def test_scores_put_the_best_constant_beside_the_macro_f1() -> None:
    summary = summarise_classification(np.array([0, 1]), np.eye(2), "ab", resampling=FEW)
    scores = {row.metric: row.value for row in summary.to_scores() if row.target == "class"}
    assert scores["macro_f1"] == 1
    assert scores["macro_f1_best_constant"] == pytest.approx(1 / 3)


def test_classes_without_probabilities_leave_the_rest_undefined() -> None:
    target, predicted = np.array([0, 1, NO_CLASS, 1]), np.array([0, 1, 1, 0])
    plain = summarise_classes(target, predicted, "ab", resampling=FEW)
    with_probs = summarise_classification(target, probabilities([0, 1, 1, 0], 2), "ab", resampling=FEW)
    assert plain.confusion == with_probs.confusion
    assert (plain.macro_f1, plain.num_unknown) == (with_probs.macro_f1, 1)
    assert plain.intervals.macro_f1 == with_probs.intervals.macro_f1
    assert plain.auroc.reason == "the predictions hold no probabilities"
    assert np.isnan(plain.brier)
    assert np.isnan(plain.intervals.brier.low)
    assert plain.to_json()["nll"] is None


def test_one_case_has_scores_but_no_intervals_and_no_auroc() -> None:
    summary = summarise_classification(np.array([1]), np.array([[0.2, 0.8]]), "ab", resampling=FEW)
    assert (summary.accuracy, summary.balanced_accuracy, summary.macro_f1) == (1.0, 1.0, 1.0)
    assert summary.mcc.value is None
    assert summary.lr_plus.reason == "no case of another class in the reference"
    assert np.isnan(summary.intervals.accuracy.low)
    assert summary.collapse == ""


def test_a_summary_warns_of_a_collapse_with_and_without_probabilities() -> None:
    target = np.repeat([0, 1, 2], 3)
    assert summarise_classification(target, probabilities([1] * 9, 3), NAMES, resampling=FEW).collapse
    assert summarise_classes(target, np.ones(9, int), NAMES, resampling=FEW).collapse
    assert not summarise_classes(target, target, NAMES, resampling=FEW).collapse


def test_the_floor_is_the_best_constant_of_every_score() -> None:
    target = np.repeat([0, 1, 2], [9, 15, 12])
    floor = summarise_classes(target, target, NAMES, resampling=FEW).floor()
    assert floor["macro_f1"] == pytest.approx(0.1961, abs=1e-4)
    assert floor["balanced_accuracy"] == pytest.approx(1 / 3)
    shares = np.array([9, 15, 12]) / 36
    assert floor["nll"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert floor["auroc"] == 0.5


def test_reasons_stand_beside_numbers_that_do_not_exist() -> None:
    summary = summarise_classification(np.array([0, 0]), probabilities([0, 0], 3), NAMES, resampling=FEW)
    assert "no specificity" in " ".join(summary.per_class[0].reasons)
    assert "no precision and no F1" in " ".join(summary.per_class[1].reasons)


def test_an_unknown_predicted_class_is_an_error() -> None:
    with pytest.raises(DatasetError, match="outside 0 to 1"):
        summarise_classes(np.array([0, 1]), np.array([0, 2]), "ab")


def test_patients_widen_the_intervals_of_cases_that_repeat_each_other() -> None:
    target, predicted = np.tile([0, 1], 20), np.repeat([0, 1, 0, 1], 10)
    groups = tuple(str(index // 10) for index in range(40))
    alone = summarise_classes(target, predicted, "ab", resampling=Resampling(num_resamples=400))
    grouped = summarise_classes(
        target, predicted, "ab", resampling=Resampling(num_resamples=400, groups=groups)
    )
    assert alone.accuracy == grouped.accuracy
    assert alone.intervals.accuracy != grouped.intervals.accuracy
