"""Agreement of class probabilities with the reference classes, beside the best constant answer.

Formulas follow Metrics Reloaded (Maier-Hein et al. 2024). The class list is fixed: macro-F1 averages over
all classes but those absent from both the reference and the predictions. Rows of a confusion matrix are the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

from nnunet.evaluation.bootstrap import Interval, Resampling, bootstrap_interval
from utils.contracts import NO_CLASS, Score
from utils.errors import DatasetError
from utils.storage import to_plain

CALIBRATION_BINS = 15  # equal-width confidence bins (Guo et al. 2017)
SUM_TOLERANCE = 1e-3  # how far the probabilities of a case may be from 1 after rounding in a table


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaUnderCurve:
    """Area under the ROC curve; `value` is None where it is undefined, and `reason` says why."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class against the rest; NaN where a ratio has no denominator. `support` counts reference cases."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float
    auroc: AreaUnderCurve


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantBaseline:
    """What a predictor scores that calls every case `class_name`."""

    class_name: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationIntervals:
    """Bootstrap intervals of the numbers a reader compares."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    auroc: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationSummary:
    """Classification over the whole set.

    `auroc` is that of class 1 for two classes, else the mean one-vs-rest. `brier` ranges from
    0 to 2 (sum over classes). Cases of unknown class are counted in `num_unknown` only.
    """

    class_names: tuple[str, ...]
    num_cases: int
    num_unknown: int
    confusion: tuple[tuple[int, ...], ...]  # rows = reference
    accuracy: float
    balanced_accuracy: float
    absent_classes: tuple[str, ...]  # without a reference case: left out of the balanced accuracy
    macro_f1: float
    macro_f1_classes: int
    per_class: tuple[ClassScore, ...]
    auroc: AreaUnderCurve
    brier: float
    nll: float
    ece: float
    baselines: tuple[ConstantBaseline, ...]
    intervals: ClassificationIntervals

    @property
    def best_baseline(self) -> ConstantBaseline:
        """The constant predictor with the highest macro-F1."""
        return max(self.baselines, key=lambda baseline: baseline.macro_f1)

    def to_scores(self) -> tuple[Score, ...]:
        """Numbers of the whole set (target "class"), then those of each class."""
        auroc = float("nan") if self.auroc.value is None else self.auroc.value
        values = (
            ("accuracy", self.accuracy),
            ("balanced_accuracy", self.balanced_accuracy),
            ("macro_f1", self.macro_f1),
            ("macro_f1_best_constant", self.best_baseline.macro_f1),
            ("auroc", auroc),
            ("brier", self.brier),
            ("nll", self.nll),
            ("ece", self.ece),
        )
        rows = [Score(case_id=None, target="class", metric=name, value=value) for name, value in values]
        for item in self.per_class:
            rows += [
                Score(case_id=None, target=item.name, metric=name, value=getattr(item, name))
                for name in ("precision", "recall", "f1")
            ]
        return tuple(rows)

    def to_json(self) -> dict[str, Any]:
        """The content of classification_metrics.json: every field, and what the rows of the matrix are."""
        plain = to_plain(self)
        plain["best_baseline"] = to_plain(self.best_baseline)
        plain["confusion"] = {"rows": "reference", "columns": "prediction", "counts": plain["confusion"]}
        return plain


def summarise_classification(
    class_target: np.ndarray,
    class_probs: np.ndarray,
    class_names: Sequence[str],
    *,
    resampling: Resampling | None = None,
) -> ClassificationSummary:
    """Every number of the classification from targets (N,) and probabilities (N, K).

    Cases whose target is NO_CLASS are left out. `resampling.groups`, where given, has one entry per case of
    `class_target`. Raises DatasetError when shapes, targets or probabilities do not fit `class_names`.
    """
    resampling = resampling or Resampling()
    known = np.asarray(class_target) != NO_CLASS
    target, probs = _checked(np.asarray(class_target)[known], np.asarray(class_probs)[known], class_names)
    resampling = _resampling_of(resampling, known)
    num_classes = len(class_names)
    predicted = probs.argmax(axis=1)
    matrix = confusion_matrix(target, predicted, labels=np.arange(num_classes))
    aucs = tuple(auc_of_score(target == k, probs[:, k]) for k in range(num_classes))
    f1 = f1_per_class(matrix)
    return ClassificationSummary(
        class_names=tuple(class_names),
        num_cases=len(target),
        num_unknown=int((~known).sum()),
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
        accuracy=float(accuracy_of(matrix)),
        balanced_accuracy=float(balanced_accuracy_of(matrix)),
        absent_classes=tuple(
            name for name, count in zip(class_names, matrix.sum(1), strict=True) if count == 0
        ),
        macro_f1=float(macro_f1_of(matrix)),
        macro_f1_classes=int((~np.isnan(f1)).sum()),
        per_class=tuple(_class_score(matrix, k, class_names[k], aucs[k]) for k in range(num_classes)),
        auroc=_overall_auc(aucs, class_names),
        brier=float(((probs - np.eye(num_classes)[target]) ** 2).sum(axis=1).mean()),
        nll=float(log_loss(target, probs, labels=np.arange(num_classes))),
        ece=expected_calibration_error(target, probs),
        baselines=constant_baselines(target, class_names),
        intervals=_intervals(target, probs, predicted, resampling),
    )


def accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """The share of cases on the diagonal, for one matrix (K, K) or many (..., K, K)."""
    return _divide(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def balanced_accuracy_of(confusion: np.ndarray) -> np.ndarray:
    """The mean recall of the classes that occur in the reference, for matrices (..., K, K)."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_of_defined(_divide(diagonal, confusion.sum(axis=-1)))


def f1_per_class(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class (..., K); NaN for a class absent from both sides."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _divide(2 * diagonal, confusion.sum(axis=-1) + confusion.sum(axis=-2))


def macro_f1_of(confusion: np.ndarray) -> np.ndarray:
    """The mean F1 of the classes that occur in reference or predictions, for matrices (..., K, K)."""
    return _mean_of_defined(f1_per_class(confusion))


def constant_baselines(class_target: np.ndarray, class_names: Sequence[str]) -> tuple[ConstantBaseline, ...]:
    """What "always this class" scores on targets (N,), for each class: the floor every model must clear."""
    num_classes = len(class_names)
    baselines = []
    for index, name in enumerate(class_names):
        constant = np.full_like(class_target, index)
        matrix = confusion_matrix(class_target, constant, labels=np.arange(num_classes))
        baselines.append(
            ConstantBaseline(
                class_name=name, accuracy=float(accuracy_of(matrix)), macro_f1=float(macro_f1_of(matrix))
            )
        )
    return tuple(baselines)


def auc_of_score(target: np.ndarray, score: np.ndarray) -> AreaUnderCurve:
    """Area under the ROC curve of any score (N,), such as a lesion's volume, for a binary target (N,)."""
    positive = np.asarray(target).astype(bool)
    if positive.size == 0 or positive.all() or not positive.any():
        missing = "positive" if not positive.any() else "negative"
        return AreaUnderCurve(value=None, reason=f"no {missing} case in the reference")
    return AreaUnderCurve(value=float(roc_auc_score(positive, score)))


def expected_calibration_error(
    class_target: np.ndarray, class_probs: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Top-label ECE: mean distance of confidence and accuracy over equal bins (l, u], the first [0, u]."""
    confidence = class_probs.max(axis=1)
    is_right = class_probs.argmax(axis=1) == class_target
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.intp) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(class_target))


def _checked(
    target: np.ndarray, probs: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """int64 targets and float64 rows that sum to 1, or an error that says what is off."""
    num_classes = len(class_names)
    if probs.ndim != 2 or probs.shape != (len(target), num_classes):
        raise DatasetError(
            f"Class probabilities have shape {probs.shape}; {len(target)} cases and the classes "
            f"{list(class_names)} need {(len(target), num_classes)}."
        )
    if len(target) == 0:
        raise DatasetError("No case has a known class, so the classification cannot be scored.")
    if target.min() < 0 or target.max() >= num_classes:
        raise DatasetError(
            f"A class target lies outside 0 to {num_classes - 1}: {sorted(set(target.tolist()))}."
        )
    probs = probs.astype(np.float64)
    sums = probs.sum(axis=1)
    is_wrong = ~np.isfinite(probs).all(axis=1) | (probs < 0).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise DatasetError(
            f"Class probabilities must lie in 0 to 1 and sum to 1, but row {row} is {probs[row].tolist()}. "
            "Give probabilities (after the softmax), not logits."
        )
    return target.astype(np.int64), probs / sums[:, None]


def _resampling_of(resampling: Resampling, known: np.ndarray) -> Resampling:
    if not resampling.groups:
        return resampling
    if len(resampling.groups) != len(known):
        raise ValueError(f"{len(resampling.groups)} groups were given for {len(known)} cases.")
    groups = tuple(group for group, keep in zip(resampling.groups, known, strict=True) if keep)
    return Resampling(
        seed=resampling.seed,
        num_resamples=resampling.num_resamples,
        level=resampling.level,
        groups=groups,
    )


def _class_score(confusion: np.ndarray, index: int, name: str, auroc: AreaUnderCurve) -> ClassScore:
    """Precision is 0 for a class that was never predicted but exists, and NaN for one that does neither."""
    hits, support = confusion[index, index], confusion[index].sum()
    called = confusion[:, index].sum()
    precision = hits / called if called else (0.0 if support else float("nan"))
    return ClassScore(
        name=name,
        support=int(support),
        precision=float(precision),
        recall=float(_divide(hits, support)),
        f1=float(f1_per_class(confusion)[index]),
        auroc=auroc,
    )


def _overall_auc(aucs: Sequence[AreaUnderCurve], class_names: Sequence[str]) -> AreaUnderCurve:
    if len(aucs) == 2:
        return aucs[1]
    defined = [auc.value for auc in aucs if auc.value is not None]
    if not defined:
        return AreaUnderCurve(value=None, reason="no class has both positive and negative cases")
    missing = [name for name, auc in zip(class_names, aucs, strict=True) if auc.value is None]
    reason = f"mean of {len(defined)} of {len(aucs)} classes; undefined for {', '.join(missing)}"
    return AreaUnderCurve(value=float(np.mean(defined)), reason=reason if missing else "")


def _intervals(
    target: np.ndarray, probs: np.ndarray, predicted: np.ndarray, resampling: Resampling
) -> ClassificationIntervals:
    num_cases, num_classes = probs.shape
    pairs = np.eye(num_classes**2)[target * num_classes + predicted]

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        def of_weights(weights: np.ndarray) -> np.ndarray:
            return statistic((weights @ pairs).reshape(-1, num_classes, num_classes))

        return bootstrap_interval(of_weights, num_cases, resampling)

    return ClassificationIntervals(
        accuracy=interval(accuracy_of),
        balanced_accuracy=interval(balanced_accuracy_of),
        macro_f1=interval(macro_f1_of),
        auroc=bootstrap_interval(_weighted_auc(target, probs), num_cases, resampling),
    )


def _weighted_auc(target: np.ndarray, probs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Overall AUROC of each resample: the weighted share of (positive, negative) pairs in order."""
    num_classes = probs.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)

    def auc(weights: np.ndarray) -> np.ndarray:
        per_class = []
        for k in classes:
            is_positive = target == k
            positive, negative = weights[:, is_positive], weights[:, ~is_positive]
            gap = probs[is_positive, k][:, None] - probs[~is_positive, k][None]
            ordered = (np.sign(gap) + 1) / 2  # a tie counts half
            per_class.append(
                _divide(
                    ((positive @ ordered) * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)
                )
            )
        return _mean_of_defined(np.stack(per_class, axis=-1))

    return auc


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where `whole` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without its NaN entries; NaN where nothing is left."""
    is_defined = ~np.isnan(values)
    return _divide(np.where(is_defined, values, 0.0).sum(axis=-1), is_defined.sum(axis=-1))
