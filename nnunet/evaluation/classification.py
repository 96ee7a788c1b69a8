"""Agreement of predicted classes with the reference, beside what answers without a network would score.

Formulas follow Metrics Reloaded (Maier-Hein et al. 2024). The class list is fixed: macro-F1 averages over
all classes but those absent from both the reference and the predictions. Rows of a confusion matrix are the
reference. A tie of probabilities goes to the class that is named first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from nnunet.evaluation.baselines import (
    ConstantBaseline,
    class_share_scores,
    collapse_reason,
    constant_baselines,
)
from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.class_intervals import (
    ClassificationIntervals,
    intervals_of_labels,
    resampling_of_known,
    with_probabilities,
)
from nnunet.evaluation.class_metrics import (
    Ratio,
    accuracy_of,
    balanced_accuracy_of,
    cohen_kappa,
    f1_per_class,
    f_beta_per_class,
    macro_f1_of,
    matthews_correlation,
    mean_of_defined,
    mean_ratio,
    normalised_cost,
    weighted_f1_of,
)
from nnunet.evaluation.class_probabilities import (
    AreaUnderCurve,
    ProbabilityScores,
    auc_of_score,
    auc_per_class,
    checked_probabilities,
    checked_target,
    expected_calibration_error,
    mean_auc,
    probability_scores,
)
from nnunet.evaluation.class_scores import ClassScore, class_scores
from utils.contracts import NO_CLASS, Score
from utils.errors import DatasetError
from utils.storage import to_plain

__all__ = [  # with the names that other rooms know from here
    "AreaUnderCurve",
    "ClassScore",
    "ClassificationIntervals",
    "ClassificationSummary",
    "ConstantBaseline",
    "auc_of_score",
    "constant_baselines",
    "expected_calibration_error",
    "macro_f1_of",
    "summarise_classes",
    "summarise_classification",
]

NO_PROBABILITIES = "the predictions hold no probabilities"
CHANCE_AUROC = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationSummary:
    """Classification over the whole set.

    `auroc` is that of class 1 for two classes, else the mean one-vs-rest; `auroc_weighted` weighs the
    classes by their cases. `lr_plus` and `lr_minus` are means over classes. `class_shares` is what the
    shares of the classes score as probabilities. `collapse` is a warning, empty where there is none. Cases
    of unknown class are counted in `num_unknown` only.
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
    macro_f2: float
    weighted_f1: float
    mcc: Ratio
    kappa: Ratio
    kappa_quadratic: Ratio  # for classes that have an order
    normalised_cost: Ratio
    lr_plus: Ratio
    lr_minus: Ratio
    per_class: tuple[ClassScore, ...]
    auroc: AreaUnderCurve
    auroc_weighted: AreaUnderCurve
    probability: ProbabilityScores
    baselines: tuple[ConstantBaseline, ...]
    class_shares: ProbabilityScores
    intervals: ClassificationIntervals
    collapse: str = ""

    @property
    def brier(self) -> float:
        """From 0 to 2: summed over classes."""
        return self.probability.brier

    @property
    def nll(self) -> float:
        """Negative log-likelihood in nats."""
        return self.probability.nll

    @property
    def ece(self) -> float:
        """Top-label calibration error over 15 equal bins."""
        return self.probability.ece

    @property
    def best_baseline(self) -> ConstantBaseline:
        """The constant predictor with the highest macro-F1."""
        return max(self.baselines, key=lambda baseline: baseline.macro_f1)

    def floor(self) -> dict[str, float]:
        """The best that an answer without any look at the case scores, metric by metric."""
        best = {
            name: max(getattr(baseline, name) for baseline in self.baselines)
            for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
        }
        return best | {"auroc": CHANCE_AUROC, "brier": self.class_shares.brier, "nll": self.class_shares.nll}

    def to_scores(self) -> tuple[Score, ...]:
        """Numbers of the whole set (target "class"), then those of each class."""
        names = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "brier", "nll", "ece")
        values = {name: getattr(self, name) for name in names}
        values |= {"auroc": float("nan") if self.auroc.value is None else self.auroc.value}
        values |= {f"{name}_best_constant": value for name, value in self.floor().items()}
        rows = [
            Score(case_id=None, target="class", metric=name, value=value) for name, value in values.items()
        ]
        for item in self.per_class:
            rows += [
                Score(case_id=None, target=item.name, metric=name, value=getattr(item, name))
                for name in ("precision", "recall", "specificity", "f1")
            ]
        return tuple(rows)

    def to_json(self) -> dict[str, Any]:
        """Every field as a plain value, and what the rows of the matrix are."""
        plain = to_plain(self)
        plain |= plain["probability"]
        plain["best_baseline"] = to_plain(self.best_baseline)
        plain["floor"] = to_plain(self.floor())
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
    known = np.asarray(class_target) != NO_CLASS
    probs = checked_probabilities(np.asarray(class_probs)[known], int(known.sum()), class_names)
    target = checked_target(np.asarray(class_target)[known], class_names)
    aucs = auc_per_class(target, probs)
    summary = _summary_of_labels(
        target, probs.argmax(axis=1), class_names, aucs, resampling_of_known(resampling, known)
    )
    return replace(
        summary,
        num_unknown=int((~known).sum()),
        probability=probability_scores(target, probs),
        intervals=with_probabilities(
            summary.intervals, target, probs, resampling_of_known(resampling, known)
        ),
        collapse=collapse_reason(target, probs, class_names),
    )


def summarise_classes(
    class_target: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    *,
    resampling: Resampling | None = None,
) -> ClassificationSummary:
    """As `summarise_classification`, from predicted classes (N,) alone; what needs more is undefined."""
    known = np.asarray(class_target) != NO_CLASS
    target = checked_target(np.asarray(class_target)[known], class_names)
    called = checked_target(np.asarray(predicted)[known], class_names)
    if len(called) != len(target):
        raise DatasetError(f"{len(target)} cases need as many predicted classes, got {len(called)}.")
    nothing = AreaUnderCurve(value=None, reason=NO_PROBABILITIES)
    summary = _summary_of_labels(
        target, called, class_names, (nothing,) * len(class_names), resampling_of_known(resampling, known)
    )
    is_one = len(np.unique(called)) == 1 and len(np.unique(target)) > 1
    return replace(
        summary,
        num_unknown=int((~known).sum()),
        auroc=nothing,
        auroc_weighted=nothing,
        collapse=f"class {class_names[called[0]]} is predicted for all {len(called)} cases" if is_one else "",
    )


def _summary_of_labels(
    target: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    aucs: Sequence[AreaUnderCurve],
    resampling: Resampling,
) -> ClassificationSummary:
    """What one predicted class per case decides; the rest is undefined."""
    num_classes = len(class_names)
    matrix = confusion_matrix(target, predicted, labels=np.arange(num_classes))
    per_class = class_scores(matrix, class_names, aucs)
    support = [item.support for item in per_class]
    return ClassificationSummary(
        class_names=tuple(class_names),
        num_cases=len(target),
        num_unknown=0,
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
        accuracy=float(accuracy_of(matrix)),
        balanced_accuracy=float(balanced_accuracy_of(matrix)),
        absent_classes=tuple(item.name for item in per_class if item.support == 0),
        macro_f1=float(macro_f1_of(matrix)),
        macro_f1_classes=int((~np.isnan(f1_per_class(matrix))).sum()),
        macro_f2=float(mean_of_defined(f_beta_per_class(matrix, 2.0))),
        weighted_f1=float(weighted_f1_of(matrix)),
        mcc=matthews_correlation(target, predicted),
        kappa=cohen_kappa(target, predicted, num_classes),
        kappa_quadratic=cohen_kappa(target, predicted, num_classes, quadratic=True),
        normalised_cost=normalised_cost(matrix),
        lr_plus=mean_ratio([item.ratios.plus for item in per_class], class_names),
        lr_minus=mean_ratio([item.ratios.minus for item in per_class], class_names),
        per_class=per_class,
        auroc=mean_auc(aucs, class_names),
        auroc_weighted=mean_auc(aucs, class_names, support),
        probability=ProbabilityScores(),
        baselines=constant_baselines(target, class_names),
        class_shares=class_share_scores(target, num_classes),
        intervals=intervals_of_labels(target, predicted, num_classes, resampling),
    )
