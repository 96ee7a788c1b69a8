"""Each class against the rest, as one record per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet.evaluation.class_metrics import (
    CONTINUITY_CORRECTION,
    NO_NEGATIVE,
    NO_POSITIVE,
    LikelihoodRatios,
    counts_of_class,
    f1_per_class,
    f_beta_per_class,
    likelihood_ratios,
    precision_per_class,
    recall_per_class,
    specificity_per_class,
)
from nnunet.evaluation.class_probabilities import AreaUnderCurve

NEVER_PREDICTED = "never predicted, so the precision counts as 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class against the rest; NaN where a ratio has no denominator, which `reasons` explain.

    `support` counts reference cases; `accuracy` takes the other classes as one. `f2` weighs recall twice.
    `corrected` are the likelihood ratios with 0.5 added to each count, finite where both sides have cases.
    """

    name: str
    support: int
    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    f2: float
    ratios: LikelihoodRatios
    corrected: LikelihoodRatios
    auroc: AreaUnderCurve
    reasons: tuple[str, ...] = ()


def class_scores(
    confusion: np.ndarray, class_names: Sequence[str], aucs: Sequence[AreaUnderCurve]
) -> tuple[ClassScore, ...]:
    """The record of every class from one matrix (K, K), rows = reference."""
    precision, recall = precision_per_class(confusion), recall_per_class(confusion)
    specificity = specificity_per_class(confusion)
    f1, f2 = f1_per_class(confusion), f_beta_per_class(confusion, 2.0)
    total = int(confusion.sum())
    scores = []
    for index, name in enumerate(class_names):
        counts = counts_of_class(confusion, index)
        scores.append(
            ClassScore(
                name=name,
                support=int(confusion[index].sum()),
                accuracy=(counts.true_positives + counts.true_negatives) / total,
                precision=float(precision[index]),
                recall=float(recall[index]),
                specificity=float(specificity[index]),
                f1=float(f1[index]),
                f2=float(f2[index]),
                ratios=likelihood_ratios(counts),
                corrected=likelihood_ratios(counts, correction=CONTINUITY_CORRECTION),
                auroc=aucs[index],
                reasons=_reasons(confusion, index),
            )
        )
    return tuple(scores)


def _reasons(confusion: np.ndarray, index: int) -> tuple[str, ...]:
    """Why a number of the class does not exist, or was set by a rule."""
    support, called, total = confusion[index].sum(), confusion[:, index].sum(), confusion.sum()
    reasons = []
    if support == 0:
        reasons.append(f"{NO_POSITIVE}: no recall")
        if called == 0:
            reasons.append("nor among the predictions: no precision and no F1")
    elif called == 0:
        reasons.append(NEVER_PREDICTED)
    if support == total:
        reasons.append(f"{NO_NEGATIVE}: no specificity")
    return tuple(reasons)
