"""Linear classifiers on made-up features, beside scikit-learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet.classical import CLASSIFIERS, fit_rule, fitted_out_of_fold, reason_not_to_fit
from nnunet.linear_classifier import FeatureRule, FittedClassifier
from utils.errors import UserError
from utils.storage import read_record, write_json

NAMES = ["lda", "logistic"]


def made_up(num_classes: int, *, num_cases: int = 60, distance: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 80) features of unequal scale, more than there are cases; classes differ in the first ones."""
    generator = np.random.default_rng(0)
    target = np.arange(num_cases) % num_classes
    features = generator.normal(size=(num_cases, 80))
    for index in range(num_classes):
        features[target == index, index : 4 * num_classes : num_classes] += distance
    return features * np.linspace(0.1, 50, 80) + 7, target


def of_scikit_learn(name: str, num_classes: int, num_features: int) -> Any:
    if name == "lda":
        priors = np.full(num_classes, 1 / num_classes)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors)
    else:
        model = LogisticRegression(C=100 / num_features, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), model)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_stored_rule_answers_as_scikit_learn(name: str, num_classes: int, tmp_path: Any) -> None:
    features, target = made_up(num_classes, distance=1.0)
    target[:9] = 0  # unequal classes
    rule = fit_rule(CLASSIFIERS.build(name), features, target, num_classes)
    write_json(
        tmp_path / "rule.json",
        FittedClassifier(name=name, network="abc", features=FeatureRule(), rule=rule),
    )
    stored = read_record(FittedClassifier, tmp_path / "rule.json")
    model = of_scikit_learn(name, num_classes, features.shape[1]).fit(features, target)
    new, _ = made_up(num_classes, num_cases=17)
    np.testing.assert_allclose(stored.rule.probabilities(new), model.predict_proba(new), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_separable_classes_are_recovered_out_of_fold(name: str) -> None:
    features, target = made_up(3, distance=8.0)
    probs = fitted_out_of_fold(CLASSIFIERS.build(name), features, target, [str(i) for i in range(60)], 3)
    assert probs is not None
    assert (probs.argmax(axis=1) == target).mean() == 1
    np.testing.assert_allclose(probs.sum(axis=1), 1)


@pytest.mark.parametrize("name", NAMES)
def test_classes_without_signal_are_guessed_out_of_fold(name: str) -> None:
    features, target = made_up(3, num_cases=240, distance=0.0)
    probs = fitted_out_of_fold(CLASSIFIERS.build(name), features, target, [str(i) for i in range(240)], 3)
    assert probs is not None
    # Three standard deviations of a fair guess.
    assert (probs.argmax(axis=1) == target).mean() == pytest.approx(1 / 3, abs=3 * (2 / 9 / 240) ** 0.5)
    resubstituted = fit_rule(CLASSIFIERS.build(name), features, target, 3).probabilities(features)
    assert (resubstituted.argmax(axis=1) == target).mean() > 0.6  # what an honest score must not be


def test_a_patient_is_never_answered_by_a_fit_that_saw_it() -> None:
    """Two cases of a patient are twins, and classes are otherwise chance: seen twins would be recognised."""
    generator = np.random.default_rng(1)
    features = np.repeat(generator.normal(size=(40, 60)), 2, axis=0)
    target = np.repeat(generator.integers(0, 2, 40), 2)
    patients = [str(index // 2) for index in range(80)]
    kind = CLASSIFIERS.build("lda")
    honest = fitted_out_of_fold(kind, features, target, patients, 2)
    leaking = fitted_out_of_fold(kind, features, target, [str(index) for index in range(80)], 2)
    assert honest is not None
    assert leaking is not None
    assert (honest.argmax(axis=1) == target).mean() < 0.65 < 0.8 < (leaking.argmax(axis=1) == target).mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_a_case_has_probability_zero(name: str) -> None:
    features, target = made_up(2)
    probs = fit_rule(CLASSIFIERS.build(name), features, target * 2, 4).probabilities(features)
    assert probs.shape == (60, 4)
    assert (probs[:, [1, 3]] == 0).all()
    np.testing.assert_array_equal(probs.argmax(axis=1), target * 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [[1, 1, 1], [0, 1, 2], [2]])
def test_too_few_cases_are_answered_with_their_shares(name: str, target: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(len(target), 5))
    probs = fit_rule(CLASSIFIERS.build(name), features, np.array(target), 3).probabilities(features)
    np.testing.assert_allclose(probs[0], np.bincount(target, minlength=3) / len(target))
    assert reason_not_to_fit(np.array(target))


def test_a_class_of_one_case_and_a_constant_feature_are_no_obstacle() -> None:
    features, _ = made_up(3, num_cases=7)
    features[:, 5] = 4.25
    target = np.array([0, 0, 0, 1, 1, 1, 2])
    probs = fit_rule(CLASSIFIERS.build("lda"), features, target, 3).probabilities(features)
    assert np.isfinite(probs).all()
    assert not reason_not_to_fit(target)


@pytest.mark.parametrize("name", NAMES)
def test_rare_classes_count_as_much_as_common_ones(name: str) -> None:
    generator = np.random.default_rng(0)
    target = np.array([0] * 90 + [1] * 10)
    features = generator.normal(size=(100, 2)) + 1.5 * target[:, None]
    probs = fit_rule(CLASSIFIERS.build(name), features, target, 2).probabilities(np.full((1, 2), 0.75))
    assert probs[0, 1] == pytest.approx(0.5, abs=0.2)  # half-way between the classes; the prior would say 0.1


@pytest.mark.parametrize("strength", [0, -1])
def test_a_strength_that_is_not_above_zero_is_refused(strength: int) -> None:
    kind = CLASSIFIERS.build(f"logistic:strength={strength}")
    with pytest.raises(UserError, match="logistic: strength should be above 0"):
        kind.estimator(3, 2)


def test_a_stronger_penalty_draws_probabilities_together() -> None:
    features, target = made_up(2)
    answer: Callable[[str], np.ndarray] = lambda choice: fit_rule(  # noqa: E731
        CLASSIFIERS.build(choice), features, target, 2
    ).probabilities(features)
    weak, strong = answer("logistic:strength=100"), answer("logistic:strength=0.1")
    assert weak.max(axis=1).mean() > strong.max(axis=1).mean() + 0.1
