"""What constants, class shares and the predicted volume alone would score; and the collapse alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet.evaluation.class_metrics import accuracy_of, balanced_accuracy_of, macro_f1_of, weighted_f1_of
from nnunet.evaluation.class_probabilities import (
    AreaUnderCurve,
    ProbabilityScores,
    auc_per_class,
    checked_target,
    mean_auc,
    nll_per_case,
    probability_scores,
)
from nnunet.evaluation.out_of_fold import answers_out_of_fold

SMALLEST_VOLUME_ML = (
    1e-3  # one cubic millimetre stands for an empty structure, whose logarithm does not exist
)
COLLAPSE_MARGIN = 0.02  # nats around ln K within which a loss says that nothing was learned
UNDEFINED = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantBaseline:
    """What a predictor scores that calls every case `class_name`."""

    class_name: str
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    weighted_f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeBaseline:
    """What the predicted volumes alone score; every number is NaN where `reason` says why there is none."""

    accuracy: float = UNDEFINED
    balanced_accuracy: float = UNDEFINED
    macro_f1: float = UNDEFINED
    weighted_f1: float = UNDEFINED
    auroc: AreaUnderCurve = AreaUnderCurve(value=None, reason="not measured")
    probability: ProbabilityScores = ProbabilityScores()
    reason: str = ""


def constant_baselines(class_target: np.ndarray, class_names: Sequence[str]) -> tuple[ConstantBaseline, ...]:
    """What "always this class" scores on targets (N,), for each class: the floor every model must clear."""
    labels = np.arange(len(class_names))
    baselines = []
    for index, name in enumerate(class_names):
        matrix = confusion_matrix(class_target, np.full_like(class_target, index), labels=labels)
        baselines.append(
            ConstantBaseline(
                class_name=name,
                accuracy=float(accuracy_of(matrix)),
                macro_f1=float(macro_f1_of(matrix)),
                balanced_accuracy=float(balanced_accuracy_of(matrix)),
                weighted_f1=float(weighted_f1_of(matrix)),
            )
        )
    return tuple(baselines)


def class_share_scores(class_target: np.ndarray, num_classes: int) -> ProbabilityScores:
    """What the shares of the classes score as probabilities: the best constant answer for Brier and NLL."""
    shares = np.bincount(class_target, minlength=num_classes) / len(class_target)
    return probability_scores(class_target, np.tile(shares, (len(class_target), 1)))


def volume_baseline(
    class_target: np.ndarray,
    volumes_ml: np.ndarray,
    class_names: Sequence[str],
    *,
    patients: Sequence[str] = (),
) -> VolumeBaseline:
    """Logistic regression on the logarithm of predicted volumes, each case answered out of fold.

    Targets (N,), volumes (N, S) with one column per structure, one patient per case (each case its own
    where none is given). A classifier that does not beat this has learned nothing but size.
    """
    target = checked_target(np.asarray(class_target), class_names)
    groups = tuple(patients) or tuple(str(index) for index in range(len(target)))

    def fit_and_answer(fitted_on: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        return classify_by_volume(
            volumes_ml[fitted_on], target[fitted_on], volumes_ml[held_out], num_classes=len(class_names)
        )

    probs = answers_out_of_fold(target, groups, len(class_names), fit_and_answer)
    if probs is None:
        return VolumeBaseline(reason="a fit needs two patients and two classes")
    return score_volume_answers(target, probs, class_names)


def classify_by_volume(
    fitted_on_ml: np.ndarray, fitted_target: np.ndarray, volumes_ml: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """(L, num_classes) probabilities for volumes (L, S) by logistic regression on (M, S) and targets (M,).

    Classes count the same however rare they are. A class without a case in the fit has probability 0; where
    the fit saw a single class, that one is certain.
    """
    known = np.unique(fitted_target)
    probs = np.zeros((len(volumes_ml), num_classes))
    if len(known) == 1:
        probs[:, known[0]] = 1.0
        return probs
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(_log_volumes(fitted_on_ml), fitted_target)
    probs[:, known] = model.predict_proba(_log_volumes(volumes_ml))
    return probs


def score_volume_answers(
    class_target: np.ndarray, class_probs: np.ndarray, class_names: Sequence[str]
) -> VolumeBaseline:
    """The scores of probabilities (N, K) that came from volumes alone."""
    labels = np.arange(len(class_names))
    matrix = confusion_matrix(class_target, class_probs.argmax(axis=1), labels=labels)
    return VolumeBaseline(
        accuracy=float(accuracy_of(matrix)),
        balanced_accuracy=float(balanced_accuracy_of(matrix)),
        macro_f1=float(macro_f1_of(matrix)),
        weighted_f1=float(weighted_f1_of(matrix)),
        auroc=mean_auc(auc_per_class(class_target, class_probs), class_names),
        probability=probability_scores(class_target, class_probs),
    )


def is_collapsed(
    class_target: np.ndarray, class_probs: np.ndarray, *, cross_entropy: float | None = None
) -> bool:
    """Whether a classifier has stopped to tell cases apart; see `collapse_reason`."""
    return bool(collapse_reason(class_target, class_probs, cross_entropy=cross_entropy))


def collapse_reason(
    class_target: np.ndarray,
    class_probs: np.ndarray,
    class_names: Sequence[str] = (),
    *,
    cross_entropy: float | None = None,
) -> str:
    """Why a classifier counts as collapsed, from targets (N,) and probabilities (N, K); empty if it does not.

    Either every case is called the same although the reference holds several classes, or the cross-entropy
    lies within 0.02 of ln K, that of equal probabilities. `cross_entropy` is that of the training's loss;
    unset, it is computed here. Without names classes go by their numbers.
    """
    if len(class_target) == 0:
        return ""
    num_classes = class_probs.shape[1]
    called, present = np.unique(class_probs.argmax(axis=1)), np.unique(class_target)
    if len(called) == 1 and len(present) > 1:
        name = class_names[called[0]] if class_names else called[0]
        return f"class {name} is predicted for all {len(class_target)} cases"
    loss = float(nll_per_case(class_target, class_probs).mean()) if cross_entropy is None else cross_entropy
    if abs(loss - np.log(num_classes)) <= COLLAPSE_MARGIN:
        return f"the cross-entropy {loss:.4f} is that of equal probabilities, ln {num_classes}"
    return ""


def _log_volumes(volumes_ml: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(volumes_ml, SMALLEST_VOLUME_ML))
