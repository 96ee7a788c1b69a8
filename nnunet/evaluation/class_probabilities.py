"""How good class probabilities are: ranking (AUROC), calibration (ECE), proper scores (Brier, NLL)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from nnunet.evaluation.class_metrics import divide, mean_of_defined
from nnunet.evaluation.class_outputs import SMALLEST_PROBABILITY
from utils.errors import DatasetError

CALIBRATION_BINS = 15  # equal-width confidence bins (Guo et al. 2017)
FEWER_BINS = 10  # the other usual number (Metrics Reloaded)
SUM_TOLERANCE = 1e-3  # how far the probabilities of a case may be from 1 after rounding in a table
UNDEFINED = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaUnderCurve:
    """Area under the ROC curve; `value` is None where it is undefined, and `reason` says why."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityScores:
    """What probabilities are worth beyond the class they favour; lower is better, NaN without any.

    `brier` is the sum over classes, from 0 to 2, and `root_brier` its root. `ece` has 15 equal bins of the
    top confidence, `ece_10` ten, `ece_adaptive` 15 bins of as many cases each; `ece_class_wise` is the mean
    over classes of the gap between each class's probability and its frequency.
    """

    brier: float = UNDEFINED
    root_brier: float = UNDEFINED
    nll: float = UNDEFINED
    ece: float = UNDEFINED
    ece_10: float = UNDEFINED
    ece_class_wise: float = UNDEFINED
    ece_adaptive: float = UNDEFINED


def checked_target(class_target: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Targets (N,) as int64; DatasetError without a case or for a class that `class_names` lacks."""
    if len(class_target) == 0:
        raise DatasetError("No case has a known class, so the classification cannot be scored.")
    if class_target.min() < 0 or class_target.max() >= len(class_names):
        raise DatasetError(
            f"A class target lies outside 0 to {len(class_names) - 1}: {sorted(set(class_target.tolist()))}."
        )
    return class_target.astype(np.int64)


def checked_probabilities(class_probs: np.ndarray, num_cases: int, class_names: Sequence[str]) -> np.ndarray:
    """float64 rows (N, K) that sum to 1 exactly, or a DatasetError that says what is off."""
    if class_probs.ndim != 2 or class_probs.shape != (num_cases, len(class_names)):
        raise DatasetError(
            f"Class probabilities have shape {class_probs.shape}; {num_cases} cases and the classes "
            f"{list(class_names)} need {(num_cases, len(class_names))}."
        )
    probs = class_probs.astype(np.float64)
    sums = probs.sum(axis=1)
    is_wrong = ~np.isfinite(probs).all(axis=1) | (probs < 0).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise DatasetError(
            f"Class probabilities must lie in 0 to 1 and sum to 1, but row {row} is {probs[row].tolist()}. "
            "Give probabilities (after the softmax), not logits."
        )
    return probs / sums[:, None]


def probability_scores(class_target: np.ndarray, class_probs: np.ndarray) -> ProbabilityScores:
    """Every score of ProbabilityScores from targets (N,) and probabilities (N, K) that sum to 1."""
    brier = float(brier_per_case(class_target, class_probs).mean())
    return ProbabilityScores(
        brier=brier,
        root_brier=brier**0.5,
        nll=float(nll_per_case(class_target, class_probs).mean()),
        ece=expected_calibration_error(class_target, class_probs),
        ece_10=expected_calibration_error(class_target, class_probs, FEWER_BINS),
        ece_class_wise=class_wise_calibration_error(class_target, class_probs),
        ece_adaptive=adaptive_calibration_error(class_target, class_probs),
    )


def brier_per_case(class_target: np.ndarray, class_probs: np.ndarray) -> np.ndarray:
    """(N,) squared distance of probabilities and truth, summed over classes: 0 to 2 (Brier 1950)."""
    return ((class_probs - np.eye(class_probs.shape[1])[class_target]) ** 2).sum(axis=1)


def nll_per_case(class_target: np.ndarray, class_probs: np.ndarray) -> np.ndarray:
    """(N,) minus the logarithm of the true class's probability; a probability of 0 counts as 2.2e-16."""
    right = np.take_along_axis(class_probs, class_target[:, None], axis=1)[:, 0]
    return -np.log(np.maximum(right, SMALLEST_PROBABILITY))


def auc_of_score(target: np.ndarray, score: np.ndarray) -> AreaUnderCurve:
    """Area under the ROC curve of any score (N,), such as a lesion's volume, for a binary target (N,)."""
    positive = np.asarray(target).astype(bool)
    if positive.size == 0 or positive.all() or not positive.any():
        missing = "positive" if not positive.any() else "negative"
        return AreaUnderCurve(value=None, reason=f"no {missing} case in the reference")
    return AreaUnderCurve(value=float(roc_auc_score(positive, score)))


def auc_per_class(class_target: np.ndarray, class_probs: np.ndarray) -> tuple[AreaUnderCurve, ...]:
    """One against the rest for each class, from targets (N,) and probabilities (N, K)."""
    return tuple(auc_of_score(class_target == k, class_probs[:, k]) for k in range(class_probs.shape[1]))


def mean_auc(
    aucs: Sequence[AreaUnderCurve], class_names: Sequence[str], weights: Sequence[float] | None = None
) -> AreaUnderCurve:
    """The mean over classes that have one, plain or by `weights`; of two classes, that of the second."""
    if len(aucs) == 2:
        return aucs[1]
    shares = [1.0] * len(aucs) if weights is None else weights
    defined = [(auc.value, share) for auc, share in zip(aucs, shares, strict=True) if auc.value is not None]
    if not defined:
        return AreaUnderCurve(value=None, reason="no class has both positive and negative cases")
    missing = [name for name, auc in zip(class_names, aucs, strict=True) if auc.value is None]
    reason = f"mean of {len(defined)} of {len(aucs)} classes; undefined for {', '.join(missing)}"
    values, kept = np.array(defined).T
    return AreaUnderCurve(value=float(np.average(values, weights=kept)), reason=reason if missing else "")


def expected_calibration_error(
    class_target: np.ndarray, class_probs: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Top-label ECE: mean distance of confidence and accuracy over equal bins (l, u], the first [0, u]."""
    weights = np.ones((1, len(class_target)))
    return float(weighted_calibration_error(class_target, class_probs, num_bins)(weights)[0])


def weighted_calibration_error(
    class_target: np.ndarray, class_probs: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> Callable[[np.ndarray], np.ndarray]:
    """The top-label ECE of resamples: weights (R, N) -> (R,)."""
    confidence = class_probs.max(axis=1)
    gaps = confidence - (class_probs.argmax(axis=1) == class_target)
    in_bin = np.eye(num_bins)[_equal_bins(confidence, num_bins)] * gaps[:, None]

    def error(weights: np.ndarray) -> np.ndarray:
        return divide(np.abs(weights @ in_bin).sum(axis=1), weights.sum(axis=1))

    return error


def class_wise_calibration_error(
    class_target: np.ndarray, class_probs: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> float:
    """The mean over classes of the gap between a class's probability and its frequency (Kull et al. 2019)."""
    errors = [
        _gap(_equal_bins(column, num_bins), column - (class_target == k), num_bins)
        for k, column in enumerate(class_probs.T)
    ]
    return float(np.mean(errors))


def adaptive_calibration_error(
    class_target: np.ndarray, class_probs: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Top-label ECE over bins of about as many cases each (Nguyen and O'Connor 2015); ties share a bin."""
    confidence = class_probs.max(axis=1)
    edges = np.quantile(confidence, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, confidence, side="left")
    return _gap(bins, confidence - (class_probs.argmax(axis=1) == class_target), num_bins)


def weighted_auc(class_target: np.ndarray, class_probs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Overall AUROC of resamples, (R, N) -> (R,): the share of ordered (positive, negative) pairs."""
    num_classes = class_probs.shape[1]
    classes = [1] if num_classes == 2 else range(num_classes)

    def auc(weights: np.ndarray) -> np.ndarray:
        per_class = []
        for k in classes:
            is_positive = class_target == k
            positive, negative = weights[:, is_positive], weights[:, ~is_positive]
            gap = class_probs[is_positive, k][:, None] - class_probs[~is_positive, k][None]
            ordered = (np.sign(gap) + 1) / 2  # a tie counts half
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            per_class.append(divide(((positive @ ordered) * negative).sum(axis=1), pairs))
        return mean_of_defined(np.stack(per_class, axis=-1))

    return auc


def _equal_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin (l, u] of each value in 0 to 1; 0 itself lies in the first."""
    return np.searchsorted(np.arange(1, num_bins) / num_bins, values, side="left")


def _gap(bins: np.ndarray, gaps: np.ndarray, num_bins: int) -> float:
    return float(np.abs(np.bincount(bins, weights=gaps, minlength=num_bins)).sum() / len(gaps))
