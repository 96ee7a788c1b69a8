"""Numbers of a confusion matrix, with a pencil and against scikit-learn, and what happens at their edges."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from nnunet.evaluation.class_metrics import (
    Ratio,
    cohen_kappa,
    counts_of_class,
    f_beta_per_class,
    likelihood_ratios,
    matthews_correlation,
    mean_ratio,
    normalised_cost,
    precision_per_class,
    recall_per_class,
    specificity_per_class,
    weighted_f1_of,
)

# Rows are the reference: 9, 15 and 12 cases.
MATRIX = np.array([[4, 1, 4], [2, 9, 4], [0, 5, 7]])
TARGET = np.repeat([0, 1, 2], MATRIX.sum(axis=1))
PREDICTED = np.concatenate([np.repeat([0, 1, 2], row) for row in MATRIX])


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_f_beta_from_counts_is_scikit_learns(beta: float) -> None:
    expected = metrics.fbeta_score(TARGET, PREDICTED, beta=beta, average=None)
    np.testing.assert_allclose(f_beta_per_class(MATRIX, beta), np.asarray(expected))


def test_precision_recall_and_weighted_f1_are_scikit_learns() -> None:
    np.testing.assert_allclose(
        precision_per_class(MATRIX), np.asarray(metrics.precision_score(TARGET, PREDICTED, average=None))
    )
    np.testing.assert_allclose(
        recall_per_class(MATRIX), np.asarray(metrics.recall_score(TARGET, PREDICTED, average=None))
    )
    assert weighted_f1_of(MATRIX) == pytest.approx(metrics.f1_score(TARGET, PREDICTED, average="weighted"))


def test_specificity_is_the_recall_of_the_rest() -> None:
    np.testing.assert_allclose(specificity_per_class(MATRIX), [25 / 27, 15 / 21, 16 / 24])


def test_a_class_absent_from_both_sides_has_no_number_and_changes_no_mean() -> None:
    wider = np.pad(MATRIX, ((0, 1), (0, 1)))
    for function in (precision_per_class, recall_per_class):
        assert np.isnan(function(wider)[3])
    assert np.isnan(f_beta_per_class(wider, 2.0)[3])
    assert specificity_per_class(wider)[3] == 1
    assert weighted_f1_of(wider) == pytest.approx(weighted_f1_of(MATRIX))


def test_specificity_does_not_exist_where_all_cases_are_of_the_class() -> None:
    assert np.isnan(specificity_per_class(np.array([[3, 1], [0, 0]]))[0])


def test_likelihood_ratios_are_sensitivity_over_false_positive_rate_and_the_inverse() -> None:
    # Sensitivity 0.8, specificity 0.9.
    ratios = likelihood_ratios(counts_of_class(np.array([[9, 1], [2, 8]]), 1))
    assert ratios.plus.value == pytest.approx(8.0)
    assert ratios.minus.value == pytest.approx(0.2 / 0.9)


def test_a_specificity_of_one_gives_an_infinite_ratio_with_its_reason() -> None:
    counts = counts_of_class(np.array([[10, 0], [2, 8]]), 1)
    plain = likelihood_ratios(counts).plus
    assert (plain.value, plain.reason) == (float("inf"), "no false positive")
    # 8.5 of 11 over 0.5 of 11.
    assert likelihood_ratios(counts, correction=0.5).plus.value == pytest.approx(17.0)


def test_a_class_that_is_never_called_has_no_positive_ratio_but_a_negative_one() -> None:
    ratios = likelihood_ratios(counts_of_class(np.array([[5, 0], [5, 0]]), 1))
    assert ratios.plus == Ratio(value=None, reason="no false positive")
    assert ratios.minus.value == 1


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [([[5, 1], [0, 0]], "no case of this class"), ([[0, 0], [1, 5]], "no case of another class")],
)
@pytest.mark.parametrize("correction", [0.0, 0.5])
def test_ratios_need_cases_on_both_sides_corrected_or_not(
    matrix: list[list[int]], reason: str, correction: float
) -> None:
    ratios = likelihood_ratios(counts_of_class(np.array(matrix), 1), correction=correction)
    assert ratios.plus.value is None
    assert reason in ratios.plus.reason
    assert reason in ratios.minus.reason


def test_the_mean_ratio_names_the_classes_it_leaves_out() -> None:
    ratios = [Ratio(value=2.0), Ratio(value=float("inf"), reason="no false positive"), Ratio(value=4.0)]
    mean = mean_ratio(ratios, ("a", "b", "c"))
    assert mean.value == 3.0
    assert mean.reason == "mean of 2 of 3 classes; left out: b (no false positive)"
    assert mean_ratio(ratios[:2], ("a", "b")) is ratios[1]
    assert mean_ratio([ratios[1]] * 3, ("a", "b", "c")).value is None


def test_correlation_and_kappa_are_scikit_learns() -> None:
    assert matthews_correlation(TARGET, PREDICTED).value == pytest.approx(
        metrics.matthews_corrcoef(TARGET, PREDICTED)
    )
    assert cohen_kappa(TARGET, PREDICTED, 3).value == pytest.approx(
        metrics.cohen_kappa_score(TARGET, PREDICTED)
    )
    assert cohen_kappa(TARGET, PREDICTED, 3, quadratic=True).value == pytest.approx(
        metrics.cohen_kappa_score(TARGET, PREDICTED, weights="quadratic")
    )


def test_one_class_everywhere_leaves_correlation_and_kappa_undefined_without_a_warning() -> None:
    one = np.ones(4, dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert matthews_correlation(one, one).value is None
        assert cohen_kappa(one, one, 3).value is None
        assert normalised_cost(np.array([[0, 0], [1, 3]])).value is None


def test_a_constant_answer_correlates_with_nothing_and_costs_one() -> None:
    constant = np.ones_like(TARGET)
    answer = matthews_correlation(TARGET, constant)
    assert (answer.value, answer.reason) == (0.0, "one class is predicted for all cases")
    assert cohen_kappa(TARGET, constant, 3).value == pytest.approx(0.0)
    assert normalised_cost(np.array([[0, 9, 0], [0, 15, 0], [0, 12, 0]])).value == 1.0
    assert normalised_cost(MATRIX).value == pytest.approx(16 / 21)
