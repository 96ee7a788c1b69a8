"""Bootstrap intervals of the classification's numbers, over cases or whole patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nnunet.evaluation.bootstrap import Interval, Resampling, bootstrap_interval, mean_of
from nnunet.evaluation.class_metrics import accuracy_of, balanced_accuracy_of, macro_f1_of, weighted_f1_of
from nnunet.evaluation.class_probabilities import (
    brier_per_case,
    nll_per_case,
    weighted_auc,
    weighted_calibration_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationIntervals:
    """Intervals of the numbers a reader compares; NaN at both ends where a number does not exist."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    weighted_f1: Interval
    auroc: Interval
    brier: Interval
    nll: Interval
    ece: Interval


def resampling_of_known(resampling: Resampling | None, known: np.ndarray) -> Resampling:
    """`resampling` for the cases that `known` (N,) marks; its groups, if any, have one entry per case."""
    resampling = resampling or Resampling()
    if not resampling.groups:
        return resampling
    if len(resampling.groups) != len(known):
        raise ValueError(f"{len(resampling.groups)} groups were given for {len(known)} cases.")
    groups = tuple(group for group, keep in zip(resampling.groups, known, strict=True) if keep)
    return replace(resampling, groups=groups)


def intervals_of_labels(
    class_target: np.ndarray, predicted: np.ndarray, num_classes: int, resampling: Resampling
) -> ClassificationIntervals:
    """From targets (N,) and predicted classes (N,); what needs probabilities has no interval."""
    pairs = np.eye(num_classes**2)[class_target * num_classes + predicted]

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        def of_weights(weights: np.ndarray) -> np.ndarray:
            return statistic((weights @ pairs).reshape(-1, num_classes, num_classes))

        return bootstrap_interval(of_weights, len(class_target), resampling)

    nothing = Interval(low=float("nan"), high=float("nan"), level=resampling.level)
    return ClassificationIntervals(
        accuracy=interval(accuracy_of),
        balanced_accuracy=interval(balanced_accuracy_of),
        macro_f1=interval(macro_f1_of),
        weighted_f1=interval(weighted_f1_of),
        auroc=nothing,
        brier=nothing,
        nll=nothing,
        ece=nothing,
    )


def with_probabilities(
    intervals: ClassificationIntervals,
    class_target: np.ndarray,
    class_probs: np.ndarray,
    resampling: Resampling,
) -> ClassificationIntervals:
    """`intervals` completed by those that need probabilities (N, K)."""
    num_cases = len(class_target)
    statistics = {
        "auroc": weighted_auc(class_target, class_probs),
        "brier": mean_of(brier_per_case(class_target, class_probs)),
        "nll": mean_of(nll_per_case(class_target, class_probs)),
        "ece": weighted_calibration_error(class_target, class_probs),
    }
    measured = {name: bootstrap_interval(item, num_cases, resampling) for name, item in statistics.items()}
    return replace(intervals, **measured)
