"""Answers without a network: constants, shares and volumes; and the alarm for a network no better."""

import numpy as np
import pytest

from nnunet.evaluation.baselines import (
    class_share_scores,
    classify_by_volume,
    collapse_reason,
    constant_baselines,
    is_collapsed,
    volume_baseline,
)

NAMES = ("a", "b", "c")


def test_a_constant_has_the_balanced_accuracy_of_chance() -> None:
    baselines = constant_baselines(np.repeat([0, 1, 2], [9, 15, 12]), NAMES)
    assert [item.balanced_accuracy for item in baselines] == pytest.approx([1 / 3] * 3)
    assert baselines[1].weighted_f1 == pytest.approx(15 / 36 * (30 / 51))


def test_class_shares_score_their_entropy() -> None:
    scores = class_share_scores(np.array([0, 0, 0, 1]), 2)
    assert scores.nll == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert scores.ece == pytest.approx(0)


def test_volumes_that_tell_the_classes_apart_are_found_out_of_fold() -> None:
    generator = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], 12)
    volumes = np.exp(generator.normal(target * 3.0, 0.2))[:, None]
    baseline = volume_baseline(target, volumes, NAMES)
    assert baseline.macro_f1 == 1
    assert baseline.auroc.value == 1


def test_volumes_without_information_stay_near_chance() -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, 200)
    baseline = volume_baseline(target, generator.lognormal(size=(200, 2)), ("a", "b"))
    # Fitted and scored on the same cases it would be above one half by construction.
    assert baseline.auroc.value == pytest.approx(0.5, abs=0.1)


def test_cases_of_one_patient_do_not_help_each_other() -> None:
    # Each patient has a volume and a class of his own; seen twice, he would be recognised.
    generator = np.random.default_rng(2)
    target, volumes = np.repeat(generator.integers(0, 2, 60), 2), np.repeat(generator.lognormal(size=60), 2)
    patients = [str(index // 2) for index in range(120)]
    baseline = volume_baseline(target, volumes[:, None], ("a", "b"), patients=patients)
    assert baseline.accuracy < 0.65


def test_an_empty_structure_has_a_logarithm_too() -> None:
    probs = classify_by_volume(
        np.array([[0.0], [0.0], [50.0], [60.0]]), np.array([0, 0, 1, 1]), np.array([[0.0]]), num_classes=3
    )
    assert probs[0, 0] > 0.5
    assert probs[0, 2] == 0
    assert probs.sum() == pytest.approx(1)


def test_a_fit_on_one_class_is_certain_of_it() -> None:
    probs = classify_by_volume(np.ones((2, 1)), np.array([1, 1]), np.ones((1, 1)), num_classes=2)
    assert probs.tolist() == [[0, 1]]


@pytest.mark.parametrize("target", [[0], [1, 1]], ids=["one case", "one class"])
def test_without_two_patients_and_two_classes_there_is_no_volume_baseline(target: list[int]) -> None:
    baseline = volume_baseline(np.array(target), np.ones((len(target), 1)), ("a", "b"))
    assert np.isnan(baseline.macro_f1)
    assert baseline.auroc.value is None
    assert baseline.reason


def test_a_single_predicted_class_is_a_collapse() -> None:
    probs = np.tile([0.1, 0.8, 0.1], (6, 1))
    assert is_collapsed(np.array([0, 1, 2, 0, 1, 2]), probs)
    target = np.array([0, 1, 2, 0, 1, 2])
    assert collapse_reason(target, probs) == "class 1 is predicted for all 6 cases"
    assert collapse_reason(target, probs, ["a", "b", "c"]) == "class b is predicted for all 6 cases"


def test_a_single_class_is_no_collapse_where_the_reference_has_no_other() -> None:
    assert not is_collapsed(np.array([1, 1]), np.tile([0.1, 0.8, 0.1], (2, 1)))


@pytest.mark.parametrize(("loss", "expected"), [(1.0986, True), (1.115, True), (1.08, True), (1.07, False)])
def test_a_loss_near_that_of_equal_probabilities_is_a_collapse(loss: float, expected: bool) -> None:  # noqa: FBT001
    probs = np.eye(3) * 0.6 + 0.1
    assert is_collapsed(np.array([0, 1, 2]), probs / probs.sum(1), cross_entropy=loss) is expected


def test_the_loss_is_computed_where_none_is_given() -> None:
    probs = np.array([[0.34, 0.33, 0.33], [0.33, 0.34, 0.33], [0.33, 0.33, 0.34]])
    assert "equal probabilities" in collapse_reason(np.array([0, 1, 2]), probs)
    assert not is_collapsed(np.array([0, 1, 2]), np.eye(3))


def test_a_good_classifier_of_one_case_raises_no_alarm() -> None:
    assert not is_collapsed(np.array([0]), np.array([[0.9, 0.1]]))
    assert not is_collapsed(np.array([], dtype=int), np.zeros((0, 2)))
