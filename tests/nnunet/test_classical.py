"""Linear classifiers on made-up features, beside scikit-learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet.classical import (
    CLASSIFIERS,
    fit_calibrated,
    fit_rule,
    fitted_out_of_fold,
    reason_not_to_fit,
    temperature_of,
)
from nnunet.evaluation.class_probabilities import probability_scores
from nnunet.evaluation.out_of_fold import answers_out_of_fold
from nnunet.linear_classifier import FeatureRule, FittedClassifier, LinearRule, tempered
from utils.errors import UserError
from utils.storage import read_json, read_record, to_plain, write_json

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


def weak_signal(name: str, num_cases: int) -> tuple[LinearRule, np.ndarray, np.ndarray, np.ndarray]:
    """The rule of 80 features of which 12 tell three classes apart, targets, answers without and with T."""
    features, target = made_up(3, num_cases=num_cases, distance=0.8)
    patients = [str(index) for index in range(num_cases)]
    kind = CLASSIFIERS.build(name)
    fit = fit_calibrated(kind, features, target, patients, 3)
    raw = fitted_out_of_fold(kind, features, target, patients, 3)
    assert fit.out_of_fold is not None
    assert raw is not None
    return fit.rule, target, raw, fit.out_of_fold


@pytest.mark.parametrize("name", NAMES)
def test_where_features_outnumber_cases_a_temperature_lowers_nll_and_ece_out_of_fold(name: str) -> None:
    rule, target, raw, scaled = weak_signal(name, 60)
    before, after = probability_scores(target, raw), probability_scores(target, scaled)
    assert rule.temperature > 1.5
    assert after.nll < before.nll - 0.1
    assert after.ece < before.ece - 0.05
    np.testing.assert_array_equal(np.argsort(scaled, axis=1), np.argsort(raw, axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_temperature_lowers_the_nll_of_new_cases(name: str) -> None:
    rule, *_ = weak_signal(name, 60)
    new, target = made_up(3, num_cases=600, distance=0.8)
    new, target = new[60:], target[60:]
    cold, warm = (
        probability_scores(target, replace(rule, temperature=temperature).probabilities(new))
        for temperature in (1.0, rule.temperature)
    )
    assert warm.nll < cold.nll - 0.05
    assert warm.ece < cold.ece - 0.05


def test_a_temperature_divides_the_logits() -> None:
    features, target = made_up(3)
    rule = fit_rule(CLASSIFIERS.build("logistic"), features, target, 3)
    cold, warm = (replace(rule, temperature=t).probabilities(features) for t in (1.0, 2.0))
    gaps = [np.log(probs[:, 1:]) - np.log(probs[:, :1]) for probs in (cold, warm)]
    np.testing.assert_allclose(gaps[1], gaps[0] / 2, atol=1e-9)
    np.testing.assert_allclose(warm.sum(axis=1), 1)


def test_a_case_is_scaled_by_the_temperature_of_the_other_folds() -> None:
    rule, target, raw, scaled = weak_signal("lda", 60)
    folds: list[np.ndarray] = []

    def noted(_: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        folds.append(held_out)
        return raw[held_out]

    answers_out_of_fold(target, [str(index) for index in range(60)], 3, noted)
    temperatures = set()
    for fold in folds:
        others = np.setdiff1d(np.arange(60), fold)
        temperature = temperature_of(target[others], raw[others])
        temperatures.add(temperature)
        shares = raw[fold] ** (1 / temperature)
        np.testing.assert_allclose(scaled[fold], shares / shares.sum(axis=1, keepdims=True), atol=1e-4)
        assert abs(scaled[fold] - tempered(raw[fold], rule.temperature)).max() > 1e-3
    assert len(temperatures) == 5
    assert rule.temperature == temperature_of(target, raw)


def test_a_class_that_the_fit_knew_keeps_a_probability_however_sure_the_answer() -> None:
    features, target = made_up(3)
    rule = fit_rule(CLASSIFIERS.build("lda"), features, target, 3)
    probs = replace(rule, temperature=20.0).probabilities(1000 * features)
    assert probs.min() > 0.05  # its logits are thousands apart


def test_answers_are_never_made_more_sure() -> None:
    target = np.arange(30) % 3
    unsure = np.full((30, 3), 0.25) + 0.25 * np.eye(3)[target]
    assert temperature_of(target, unsure) == 1
    assert temperature_of(target, np.roll(unsure, 1, axis=1)) > 5  # all wrong: nothing is known


def test_a_class_that_only_one_patient_has_does_not_heat_the_others() -> None:
    features, target = made_up(2, distance=8.0)
    target[0] = 2
    fit = fit_calibrated(CLASSIFIERS.build("lda"), features, target, [str(i) for i in range(60)], 3)
    assert fit.rule.temperature < 3
    assert fit.out_of_fold is not None
    assert fit.out_of_fold[0, 2] == 0  # out of fold nobody knew it
    np.testing.assert_allclose(fit.out_of_fold.sum(axis=1), 1)


def test_one_patient_has_no_answers_out_of_fold_and_no_temperature() -> None:
    features, target = made_up(2)
    fit = fit_calibrated(CLASSIFIERS.build("lda"), features, target, ["the same"] * 60, 2)
    assert fit.out_of_fold is None
    assert fit.rule.temperature == 1


@pytest.mark.parametrize("name", NAMES)
def test_image_and_shape_belong_to_new_fits_and_can_be_left_away(name: str) -> None:
    assert (CLASSIFIERS.build(name).image, CLASSIFIERS.build(name).shape) == (True, True)
    without = CLASSIFIERS.build(f"{name}:image=false,shape=false")
    assert (without.image, without.shape) == (False, False)


def test_a_file_of_before_means_what_it_meant(tmp_path: Path) -> None:
    features, target = made_up(3)
    rule = fit_rule(CLASSIFIERS.build("lda"), features, target, 3)
    new = FittedClassifier(name="lda", network="abc", features=FeatureRule(stages=(1,)), rule=rule)
    plain = to_plain(new)
    del plain["rule"]["temperature"], plain["features"]["image"], plain["features"]["shape"]
    write_json(tmp_path / "lda.json", plain)
    assert "temperature" not in read_json(tmp_path / "lda.json")["rule"]
    stored = read_record(FittedClassifier, tmp_path / "lda.json")
    assert (stored.features.image, stored.features.shape, stored.rule.temperature) == (False, False, 1.0)
    np.testing.assert_allclose(stored.rule.probabilities(features), rule.probabilities(features))
