"""Scores under the names of the challenge's reference systems, beside our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet.evaluation.class_metrics import weighted_of
from nnunet.evaluation.class_scores import ClassScore
from nnunet.evaluation.classification import ClassificationSummary
from nnunet.evaluation.summary import SegmentationSummary
from utils.storage import to_plain

CLASS_METRICS_FILE = "classification_metrics.json"
AVERAGED = ("precision", "recall", "f1")


def metrics_record(summary: ClassificationSummary) -> dict[str, Any]:
    """The content of classification_metrics.json: our fields, and the reference systems' names beside them.

    Their `f1_macro`, `f1_weighted`, ... and `classification_report` follow our rules for classes without
    cases. In `confusion_matrix` rows are the reference.
    """
    averages = {
        f"{metric}_{average}": value
        for metric in AVERAGED
        for average, value in _averages(summary, metric).items()
    }
    if len(summary.class_names) == 2:
        areas = {"auc": summary.auroc.value}
    else:
        areas = {"auc_macro": summary.auroc.value, "auc_weighted": summary.auroc_weighted.value}
    theirs = {
        "n_samples": summary.num_cases,
        **averages,
        "confusion_matrix": summary.confusion,
        **areas,
        "classification_report": _report(summary),
    }
    return summary.to_json() | to_plain(theirs)


def final_fields(
    classes: ClassificationSummary | None,
    segmentation: SegmentationSummary | None,
    surface_dice: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The reference systems' fields of final_metrics.json; null where there is no number.

    `val_avd_class<label>_mean` is the mean absolute volume difference in millilitres. `surface_dice` has
    the mean normalised surface Dice by label name.
    """
    fields = {} if classes is None else _class_fields(classes)
    if segmentation is None:
        return to_plain(fields)
    fields["val_dsc_whole_pancreas_mean"] = segmentation.whole_organ.mean_dice
    for index, item in enumerate(segmentation.structures, start=1):
        volumes = [
            abs(case.structures[index - 1].counts.n_pred - case.structures[index - 1].counts.n_ref)
            * case.voxel_ml
            for case in segmentation.cases
        ]
        fields[f"val_dsc_class{index}_mean"] = item.mean_dice
        fields[f"val_avd_class{index}_mean"] = float(np.mean(volumes))
        if surface_dice is not None:
            fields[f"val_nsd_class{index}_mean"] = surface_dice.get(item.name)
    return to_plain(fields)


def _class_fields(summary: ClassificationSummary) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "val_balanced_accuracy": summary.balanced_accuracy,
        "val_f1_macro": summary.macro_f1,
        "val_f1_weighted": summary.weighted_f1,
        "val_auroc": summary.auroc.value,
        "val_lr_plus": summary.lr_plus.value,
        "val_ece": summary.probability.ece_10,  # theirs has ten bins
        "val_brier_score": summary.brier,
        "confusion_matrix": summary.confusion,
    }
    for index, item in enumerate(summary.per_class):
        for name in ("accuracy", "precision", "recall", "f1", "support"):
            fields[f"class_{index}_{name}"] = getattr(item, name)
        fields[f"class_{index}_auroc"] = item.auroc.value
    return fields


def _averages(summary: ClassificationSummary, metric: str) -> dict[str, Any]:
    """Four averages of precision, recall or F1; with one class per case the micro average is the accuracy."""
    values = np.array([getattr(item, metric) for item in summary.per_class])
    defined = values[~np.isnan(values)]
    return {
        "macro": float(defined.mean()) if defined.size else None,
        "micro": summary.accuracy,
        "weighted": float(weighted_of(values, np.array(summary.confusion))),
        "per_class": values.tolist(),
    }


def _report(summary: ClassificationSummary) -> dict[str, Any]:
    """As scikit-learn's classification_report gives it as a dict."""
    averages = {metric: _averages(summary, metric) for metric in AVERAGED}
    report: dict[str, Any] = {item.name: _report_line(item) for item in summary.per_class}
    report["accuracy"] = summary.accuracy
    for name in ("macro", "weighted"):
        report[f"{name} avg"] = {
            "precision": averages["precision"][name],
            "recall": averages["recall"][name],
            "f1-score": averages["f1"][name],
            "support": summary.num_cases,
        }
    return report


def _report_line(item: ClassScore) -> dict[str, float]:
    return {"precision": item.precision, "recall": item.recall, "f1-score": item.f1, "support": item.support}
