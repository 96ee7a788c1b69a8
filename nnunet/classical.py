"""Classical classifiers on the pooled features of a case: shrinkage LDA and logistic regression.

Where cases are few they are hard to beat by a trained head, and their fit takes seconds. Their probabilities
are calibrated by a temperature.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nnunet.evaluation.calibration import fit_temperature
from nnunet.evaluation.out_of_fold import answers_out_of_fold
from nnunet.linear_classifier import LinearRule, tempered
from utils.errors import UserError
from utils.registry import Registry

MAX_ITERATIONS = 1000
ONE_CASE_WARNING = "Only one sample available"  # a class of one case has no spread of its own


@final
@dataclass(frozen=True)
class Lda:
    """Linear discriminants; each class's covariance shrunk as Ledoit and Wolf (2004) say, then their mean.

    Classes count the same however rare they are. Where features outnumber cases the classes are told apart
    well and the probabilities are too sure: the temperature mends them. `image` and `shape` as FeatureRule
    has them.
    """

    name: ClassVar[str] = "lda"
    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    image: bool = True
    shape: bool = True

    def estimator(self, num_features: int, num_classes: int) -> LinearDiscriminantAnalysis:  # noqa: ARG002
        """The unfitted model of scikit-learn."""
        priors = np.full(num_classes, 1 / num_classes)
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors)


@final
@dataclass(frozen=True)
class Logistic:
    """Logistic regression with a quadratic penalty; classes count the same however rare they are.

    `strength` is scikit-learn's C times the number of features: what it means does not depend on how many
    there are. On made-up features (1346 for 252 cases, 3 to 1346 of them informative) the macro-F1 out of
    fold rose from 1 to 10 to 100. `image` and `shape` as FeatureRule has them.
    """

    name: ClassVar[str] = "logistic"
    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    image: bool = True
    shape: bool = True
    strength: float = 100.0

    def estimator(self, num_features: int, num_classes: int) -> LogisticRegression:  # noqa: ARG002
        """The unfitted model of scikit-learn; UserError for a strength that is not above 0."""
        if not self.strength > 0:
            raise UserError(f"{self.name}: strength should be above 0, got {self.strength:g}.")
        return LogisticRegression(
            C=self.strength / num_features, class_weight="balanced", max_iter=MAX_ITERATIONS
        )


Classical = Lda | Logistic
CLASSIFIERS: Registry[Classical] = Registry("classifier", Lda, Logistic)


def fit_rule(kind: Classical, features: np.ndarray, target: np.ndarray, num_classes: int) -> LinearRule:
    """The rule of `kind` for features (N, F) and targets (N,) from 0 to `num_classes` - 1.

    Features are standardised first. Where there is one class, or no more cases than classes, nothing can be
    learned: the rule then answers with the classes' shares.
    """
    known, counts = np.unique(target, return_counts=True)
    scaler = StandardScaler().fit(features)
    if len(known) == 1 or len(target) <= len(known):
        weight, intercept = np.zeros((len(known), features.shape[1])), np.log(counts / counts.sum())
    else:
        model = kind.estimator(features.shape[1], len(known))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=ONE_CASE_WARNING, category=UserWarning)
            model.fit(scaler.transform(features), target)
        weight, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
        if len(known) == 2:  # scikit-learn gives the second class's logit over that of the first
            weight, intercept = (np.concatenate([np.zeros_like(part), part]) for part in (weight, intercept))
    return LinearRule(
        num_classes=num_classes,
        classes=tuple(known.tolist()),
        mean=tuple(np.asarray(scaler.mean_).tolist()),
        scale=tuple(np.asarray(scaler.scale_).tolist()),
        weight=tuple(map(tuple, weight.tolist())),
        intercept=tuple(intercept.tolist()),
    )


def fitted_out_of_fold(
    kind: Classical, features: np.ndarray, target: np.ndarray, patients: Sequence[str], num_classes: int
) -> np.ndarray | None:
    """(N, num_classes) probabilities, each case answered by a fit without its patient; None as for the folds.

    The standardisation is fitted without it too.
    """

    def fit_and_answer(fitted_on: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        rule = fit_rule(kind, features[fitted_on], target[fitted_on], num_classes)
        return rule.probabilities(features[held_out])

    return answers_out_of_fold(target, patients, num_classes, fit_and_answer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibratedFit:
    """A rule with its temperature, and what it answers out of fold, (N, num_classes); None as for the folds.

    Each case is answered by a fit without its fold, at a temperature of the other folds' answers.
    """

    rule: LinearRule
    out_of_fold: np.ndarray | None


def fit_calibrated(
    kind: Classical, features: np.ndarray, target: np.ndarray, patients: Sequence[str], num_classes: int
) -> CalibratedFit:
    """`fit_rule`, at the temperature that its answers out of fold ask for."""
    rule = fit_rule(kind, features, target, num_classes)
    probs = fitted_out_of_fold(kind, features, target, patients, num_classes)
    if probs is None:
        return CalibratedFit(rule=rule, out_of_fold=None)

    def answer(fitted_on: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        return tempered(probs[held_out], temperature_of(target[fitted_on], probs[fitted_on]))

    return CalibratedFit(
        rule=replace(rule, temperature=temperature_of(target, probs)),
        out_of_fold=answers_out_of_fold(target, patients, num_classes, answer),
    )


def temperature_of(target: np.ndarray, class_probs: np.ndarray) -> float:
    """The temperature for answers (N, K) to targets (N,), at least 1: answers are never made more sure.

    Of cases whose class the fit had not seen nothing can be learned.
    """
    is_known = class_probs[np.arange(len(target)), target] > 0
    if not is_known.any():
        return 1.0
    return max(1.0, fit_temperature(target[is_known], class_probs[is_known]))


def reason_not_to_fit(target: np.ndarray) -> str:
    """Why no classifier can be fitted to cases of these classes (N,); empty where one can."""
    known = len(np.unique(target))
    if known < 2:
        return f"{len(target)} training cases of known class show {known} classes, two are needed"
    if len(target) <= known:
        return f"{len(target)} training cases of known class for {known} classes are too few"
    return ""
