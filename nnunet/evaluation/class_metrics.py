"""Numbers of a confusion matrix of classes (rows = reference); what is undefined is named, never guessed.

Formulas and edge cases follow Metrics Reloaded (Maier-Hein et al. 2024), computed from counts. Functions
that end in `_of` and `_per_class` take one matrix (K, K) or many (..., K, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

CONTINUITY_CORRECTION = 0.5  # cases added to each of the four counts (Haldane 1956, Anscombe 1956)
NO_POSITIVE = "no case of this class in the reference"
NO_NEGATIVE = "no case of another class in the reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio that may not exist: None where it is undefined, infinite where only its denominator is 0.

    `reason` says why in both cases. JSON has no infinity, so both are written as null beside the reason.
    """

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """Cases of one class against the rest, each in exactly one of four fields."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodRatios:
    """How much a positive (LR+) and a negative answer (LR-) change the odds of a class."""

    plus: Ratio
    minus: Ratio


def accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """The share of cases on the diagonal."""
    return divide(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def balanced_accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """The mean recall of the classes that occur in the reference."""
    return mean_of_defined(recall_per_class(confusion))


def recall_per_class(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) of each class (..., K); NaN for a class without a reference case."""
    return divide(_diagonal(confusion), confusion.sum(axis=-1))


def precision_per_class(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) of each class (..., K).

    0 for a class that was never predicted but exists, NaN for one that neither side holds.
    """
    called = confusion.sum(axis=-2)
    is_missed = (called == 0) & (confusion.sum(axis=-1) > 0)
    return np.where(is_missed, 0.0, divide(_diagonal(confusion), called))


def specificity_per_class(confusion: np.ndarray) -> np.ndarray:
    """TN / (TN + FP) of each class (..., K); NaN where every reference case is of the class."""
    negatives = confusion.sum(axis=(-2, -1))[..., None] - confusion.sum(axis=-1)
    false_positives = confusion.sum(axis=-2) - _diagonal(confusion)
    return divide(negatives - false_positives, negatives)


def f_beta_per_class(confusion: np.ndarray, beta: float) -> np.ndarray:
    """(1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) of each class (..., K); NaN for one absent from both sides.

    Recall counts `beta` times as much as precision.
    """
    hits, squared = _diagonal(confusion), beta**2
    # (1 + b^2) TP + b^2 FN + FP, put together from the two marginal sums.
    return divide((1 + squared) * hits, squared * confusion.sum(axis=-1) + confusion.sum(axis=-2))


def f1_per_class(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class (..., K); NaN for a class absent from both sides."""
    return f_beta_per_class(confusion, 1.0)


def macro_f1_of(confusion: np.ndarray) -> np.ndarray:
    """The mean F1 of the classes that occur in reference or predictions."""
    return mean_of_defined(f1_per_class(confusion))


def weighted_of(values: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """The mean of values per class (..., K), weighted by their reference cases; NaN values are left out."""
    support = confusion.sum(axis=-1) * ~np.isnan(values)
    return divide((np.nan_to_num(values) * support).sum(axis=-1), support.sum(axis=-1))


def weighted_f1_of(confusion: np.ndarray) -> np.ndarray:
    """The mean F1, each class weighted by its number of reference cases."""
    return weighted_of(f1_per_class(confusion), confusion)


def counts_of_class(confusion: np.ndarray, index: int) -> ClassCounts:
    """The four counts of class `index` against the rest, from one matrix (K, K)."""
    hits = int(confusion[index, index])
    support, called = int(confusion[index].sum()), int(confusion[:, index].sum())
    return ClassCounts(
        true_positives=hits,
        false_positives=called - hits,
        false_negatives=support - hits,
        true_negatives=int(confusion.sum()) - support - called + hits,
    )


def likelihood_ratios(counts: ClassCounts, *, correction: float = 0.0) -> LikelihoodRatios:
    """LR+ = sensitivity / (1 - specificity) and LR- = (1 - sensitivity) / specificity.

    `correction` is added to each of the four counts (0.5 makes both finite). Undefined without a positive or
    without a negative reference case, corrected or not.
    """
    positives = counts.true_positives + counts.false_negatives
    negatives = counts.true_negatives + counts.false_positives
    if not positives or not negatives:
        nothing = Ratio(value=None, reason=NO_NEGATIVE if positives else NO_POSITIVE)
        return LikelihoodRatios(plus=nothing, minus=nothing)
    sensitivity = (counts.true_positives + correction) / (positives + 2 * correction)
    specificity = (counts.true_negatives + correction) / (negatives + 2 * correction)
    return LikelihoodRatios(
        plus=_quotient(
            sensitivity,
            (counts.false_positives + correction) / (negatives + 2 * correction),
            "no false positive",
        ),
        minus=_quotient(
            (counts.false_negatives + correction) / (positives + 2 * correction),
            specificity,
            "no true negative",
        ),
    )


def mean_ratio(ratios: Sequence[Ratio], names: Sequence[str]) -> Ratio:
    """The mean over the classes with a finite ratio; `reason` names the others with what they lack.

    Where there are two classes it is the ratio of the second.
    """
    if len(ratios) == 2:
        return ratios[1]
    finite = [item.value for item in ratios if item.value is not None and np.isfinite(item.value)]
    if len(finite) == len(ratios):
        return Ratio(value=float(np.mean(finite)))
    left_out = [
        f"{name} ({item.reason})"
        for name, item in zip(names, ratios, strict=True)
        if item.value is None or not np.isfinite(item.value)
    ]
    reason = f"mean of {len(finite)} of {len(ratios)} classes; left out: {', '.join(left_out)}"
    return Ratio(value=float(np.mean(finite)) if finite else None, reason=reason)


def matthews_correlation(class_target: np.ndarray, predicted: np.ndarray) -> Ratio:
    """Matthews' correlation of two class vectors (N,), from -1 to 1; 0 for a constant answer.

    Undefined where the reference holds one class only (Gorodkin 2004 for more than two classes).
    """
    if len(np.unique(class_target)) < 2:
        return Ratio(value=None, reason="the reference holds one class only")
    constant = len(np.unique(predicted)) < 2
    value = float(matthews_corrcoef(class_target, predicted))
    return Ratio(value=value, reason="one class is predicted for all cases" if constant else "")


def cohen_kappa(
    class_target: np.ndarray, predicted: np.ndarray, num_classes: int, *, quadratic: bool = False
) -> Ratio:
    """Agreement beyond chance of two class vectors (N,) (Cohen 1960).

    `quadratic` weighs a mistake by its squared distance, which makes sense for ordered classes only.
    Undefined where both sides hold one and the same class: chance agrees too.
    """
    if len(np.unique([class_target, predicted])) < 2:
        return Ratio(value=None, reason="reference and predictions hold one and the same class")
    weights = "quadratic" if quadratic else None
    return Ratio(
        value=float(
            cohen_kappa_score(class_target, predicted, labels=np.arange(num_classes), weights=weights)
        )
    )


def normalised_cost(confusion: np.ndarray) -> Ratio:
    """The error rate over that of the best constant answer: 0 is perfect, 1 is no better than a constant.

    Expected cost with a cost of 1 for every mistake and the class shares of the reference as priors (Ferrer
    2022).
    """
    total = confusion.sum()
    floor = total - confusion.sum(axis=-1).max()
    if floor == 0:
        return Ratio(value=None, reason="the reference holds one class only")
    return Ratio(value=float((total - np.trace(confusion)) / floor))


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where `whole` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without its NaN entries; NaN where nothing is left."""
    is_defined = ~np.isnan(values)
    return divide(np.where(is_defined, values, 0.0).sum(axis=-1), is_defined.sum(axis=-1))


def _diagonal(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _quotient(part: float, whole: float, reason: str) -> Ratio:
    """part / whole; infinite, or without value where both are 0, for the `reason` that `whole` is 0."""
    if whole > 0:
        return Ratio(value=part / whole)
    return Ratio(value=float("inf") if part > 0 else None, reason=reason)
