"""The story of the classical classifier: frozen network -> features of all cases -> fit -> honest scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet.case_features import weights_hash
from nnunet.classical import CLASSIFIERS, Classical, fit_calibrated, reason_not_to_fit
from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.classification import summarise_classification
from nnunet.evaluation.report import number_text
from nnunet.lesion import Anatomy
from nnunet.linear_classifier import FeatureRule, FittedClassifier
from scripts.classifier_files import (
    BRANCH,
    ClassicalScores,
    FeatureSource,
    kept_features,
    write_classifier,
    write_features,
)
from scripts.fold_data import FoldCases, refuse_other_preparation
from scripts.model_run import ModelRun, open_model, planned_spacing_mm
from scripts.prepared_prediction import network_input
from scripts.run_options import RunOptions
from utils.contracts import NO_CLASS, Plan, PreprocessedCase
from utils.errors import DatasetError, UserError
from utils.run_log import progress, say

NONE = "none"  # of --fit_classifier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownCases:
    """Features (N, F), classes (N,) and patients of the cases whose class is known."""

    features: np.ndarray
    target: np.ndarray
    patients: tuple[str, ...]


def refuse_impossible_fit(options: RunOptions, plan: Plan) -> None:
    """UserError for a wrong --fit_classifier, or where a training would use a classifier it never fits."""
    wanted, fitted = options.inference.classifier, NONE
    if options.training.fit_classifier != NONE:
        kind = CLASSIFIERS.build(options.training.fit_classifier)
        kind.estimator(1, 2)
        Anatomy(num_labels=plan.num_labels, regions=plan.regions).channel(kind.roi_label)
        fitted = kind.name
    if options.exec_mode == "train" and wanted not in (BRANCH, fitted):
        raise UserError(
            f"--classifier {wanted} is to answer in the final validation, but this training has "
            f"--fit_classifier {options.training.fit_classifier}. Add --fit_classifier {wanted}."
        )


def fit_after_training(options: RunOptions, fold: FoldCases, checkpoint: Path) -> None:
    """Fit the classifier where the cases have classes; what prevents it is said, and the run goes on."""
    if options.training.fit_classifier == NONE or fold.plan.num_classes < 2:
        return
    try:
        fit_classifier(options, fold, checkpoint)
    except DatasetError as error:
        if options.inference.classifier != BRANCH:
            raise  # the final validation is to have its answers
        say(f"No classical classifier: {error}")


def fit_classifier(options: RunOptions, fold: FoldCases, checkpoint: Path) -> Path:
    """Fit, score and write the classifier, and return its file.

    DatasetError where the training cases are too few, or the checkpoint has seen the validation cases.
    """
    kind = CLASSIFIERS.build(options.training.fit_classifier)
    model = _unmirrored_model(options, fold, checkpoint)
    target = np.array([case.class_target for case in fold.training])
    if reason := reason_not_to_fit(target[target != NO_CLASS]):
        raise DatasetError(f"{fold.folder}: {reason}.")
    source = _source(kind, model, options, (*fold.training, *fold.validation))
    plan, started = model.model.plan, time.perf_counter()
    features = _features(options.results, model, source)
    computed = time.perf_counter()
    training = _known(features[: len(fold.training)], fold.training)
    held_out = _known(features[len(fold.training) :], fold.validation)
    fit = fit_calibrated(kind, training.features, training.target, training.patients, plan.num_classes)
    scores = ClassicalScores(
        network=source.network,
        num_features=features.shape[1],
        temperature=fit.rule.temperature,
        out_of_fold=_summary(training, fit.out_of_fold, plan, options.seed),
        held_out=_summary(held_out, fit.rule.probabilities(held_out.features), plan, options.seed),
    )
    classifier = FittedClassifier(name=kind.name, network=source.network, features=source.rule, rule=fit.rule)
    path = write_classifier(options.results, classifier, scores)
    finished = time.perf_counter()
    say(
        f"Classical classifier {kind.name}: {describe_scores(scores)}; {features.shape[1]} features of "
        f"{len(features)} cases in {computed - started:.1f} s, fits in {finished - computed:.1f} s: {path}"
    )
    return path


def describe_scores(scores: ClassicalScores) -> str:
    """Macro-F1 and NLL out of fold and on the held-out cases, and the temperature, in a few words."""
    parts = [
        f"macro-F1 {number_text(summary['macro_f1'])}, NLL {number_text(summary['nll'])} {place} "
        f"({summary['num_cases']} cases)"
        for place, summary in (("out of fold", scores.out_of_fold), ("held out", scores.held_out))
        if summary is not None
    ]
    return "; ".join([*(parts or ["no score"]), f"temperature {number_text(scores.temperature, 2)}"])


def _unmirrored_model(options: RunOptions, fold: FoldCases, checkpoint: Path) -> ModelRun:
    """The network that segments the cases: eight views of all of them would cost eight times as much."""
    inference = replace(options.inference, classifier=BRANCH, tta=False)
    model = open_model(replace(options, inference=inference), checkpoint)
    model.refuse_training_cases([case.case_id for case in fold.validation])
    refuse_other_preparation(model.model.plan, fold.plan, fold.folder)
    return model


def _source(
    kind: Classical, model: ModelRun, options: RunOptions, cases: tuple[PreprocessedCase, ...]
) -> FeatureSource:
    rule = FeatureRule(
        stages=kind.stages,
        roi_label=kind.roi_label,
        overlap=options.inference.overlap,
        blend=options.inference.blend,
        image=kind.image,
        shape=kind.shape,
    )
    return FeatureSource(network=weights_hash(model.model.network), rule=rule, amp=model.amp, cases=cases)


def _features(results: Path, model: ModelRun, source: FeatureSource) -> np.ndarray:
    """(N, F) features of the source's cases, kept in the results folder for the next fit."""
    kept = kept_features(results, source)
    if kept is not None:
        return kept
    rows = []
    for case in progress(source.cases, total=len(source.cases), label="Features"):
        image, spacing_mm = network_input(case, model.plan), planned_spacing_mm(case.footprint)
        prediction = model.predict(image, case.case_id, spacing_mm)
        rows.append(model.features(image, prediction, source.rule, spacing_mm))
    features = np.stack(rows)
    write_features(results, source, features)
    return features


def _known(features: np.ndarray, cases: Sequence[PreprocessedCase]) -> KnownCases:
    target = np.array([case.class_target for case in cases])
    return KnownCases(
        features=features[target != NO_CLASS],
        target=target[target != NO_CLASS],
        patients=tuple(case.patient_id for case in cases if case.class_target != NO_CLASS),
    )


def _summary(cases: KnownCases, probs: np.ndarray | None, plan: Plan, seed: int) -> dict[str, Any] | None:
    """What JSON has of the scores; None where there is no answer or no case."""
    if probs is None or len(cases.target) == 0:
        return None
    resampling = Resampling(seed=seed, groups=cases.patients)
    return summarise_classification(cases.target, probs, plan.class_names, resampling=resampling).to_json()
