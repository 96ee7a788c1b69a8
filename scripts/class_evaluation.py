"""Predicted classes beside their references: scores, baselines, calibration; as a file and as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet.evaluation.baselines import VolumeBaseline, volume_baseline
from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.calibration import TemperatureScaling, calibrate
from nnunet.evaluation.class_files import CLASS_METRICS_FILE, metrics_record
from nnunet.evaluation.class_metrics import Ratio
from nnunet.evaluation.classification import (
    AreaUnderCurve,
    ClassificationSummary,
    summarise_classes,
    summarise_classification,
)
from nnunet.evaluation.report import interval_text, number_text
from utils.contracts import NO_CLASS
from utils.storage import to_plain, write_json


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassAnswers:
    """What is known and what was answered for the same cases, in one order.

    `class_target` (N,) holds NO_CLASS where the class is unknown; `class_probs` (N, K) is None where the
    answers are classes only, `volumes_ml` (N, S) where no predicted volume is known.
    """

    class_names: tuple[str, ...]
    class_target: np.ndarray
    predicted: np.ndarray
    class_probs: np.ndarray | None = None
    volumes_ml: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The classification, how well volumes alone would do, and what temperature scaling would change.

    `volume_auroc` is that of the whole organ's volume for the second of two classes.
    """

    summary: ClassificationSummary
    volume: VolumeBaseline | None = None
    temperature: TemperatureScaling | None = None
    volume_auroc: AreaUnderCurve | None = None


def measure_classes(answers: ClassAnswers, resampling: Resampling) -> ClassResult:
    """Every number of the classification; groups of `resampling` are the patients, one per case."""
    known = np.asarray(answers.class_target) != NO_CLASS
    names, target = answers.class_names, answers.class_target
    patients = tuple(group for group, keep in zip(resampling.groups, known, strict=False) if keep)
    volume = None
    if answers.volumes_ml is not None and known.any():
        volume = volume_baseline(target[known], answers.volumes_ml[known], names, patients=patients)
    if answers.class_probs is None:
        summary = summarise_classes(target, answers.predicted, names, resampling=resampling)
        return ClassResult(summary=summary, volume=volume)
    summary = summarise_classification(target, answers.class_probs, names, resampling=resampling)
    temperature = calibrate(target[known], answers.class_probs[known], names, patients=patients)
    return ClassResult(summary=summary, volume=volume, temperature=temperature)


def write_class_metrics(folder: Path, result: ClassResult) -> Path:
    """Write classification_metrics.json and return its path."""
    record = metrics_record(result.summary)
    record["volume_baseline"] = to_plain(result.volume)
    record["temperature_scaling"] = to_plain(result.temperature)
    path = folder / CLASS_METRICS_FILE
    write_json(path, record)
    return path


def print_classes(result: ClassResult) -> None:
    """Per class, over all classes beside the baselines, and the confusion matrix, on standard output."""
    console = Console()
    console.print(_class_table(result.summary))
    console.print(_overall_table(result))
    console.print(_confusion_table(result.summary))
    for note in notes_of(result):
        console.print(note, markup=False, soft_wrap=True)


def notes_of(result: ClassResult) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    summary, temperature = result.summary, result.temperature
    notes = []
    if summary.collapse:
        notes.append(f"Warning: the classifier has collapsed: {summary.collapse}.")
    if summary.num_unknown:
        notes.append(f"{summary.num_unknown} cases of unknown class were left out.")
    for item in summary.per_class:
        notes += [f"Class {item.name}: {reason}." for reason in item.reasons]
    if summary.auroc.reason:
        notes.append(f"AUROC: {summary.auroc.reason}.")
    if result.volume and result.volume.reason:
        notes.append(f"No volume baseline: {result.volume.reason}.")
    if temperature and temperature.after:
        notes.append(
            f"Temperature {temperature.temperature:.3g} would change the NLL from "
            f"{temperature.before.nll:.3f} to {temperature.after.nll:.3f} and the ECE from "
            f"{temperature.before.ece:.3f} to {temperature.after.ece:.3f} (out of fold)"
            + (f"; {temperature.reason}." if temperature.reason else ".")
        )
    return tuple(notes)


def _class_table(summary: ClassificationSummary) -> Table:
    columns = ("cases", "precision", "recall", "speci-\nficity", "F1", "AUROC", "LR+", "LR-")
    table = Table(Column("class", overflow="fold"), title=f"Classes of {summary.num_cases} cases")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for item in summary.per_class:
        numbers = (item.precision, item.recall, item.specificity, item.f1, item.auroc.value)
        table.add_row(
            escape(item.name),
            str(item.support),
            *(number_text(number) for number in numbers),
            _ratio_text(item.ratios.plus),
            _ratio_text(item.ratios.minus),
        )
    return table


def _overall_table(result: ClassResult) -> Table:
    """Each score beside its interval, the best constant answer, and the predicted volume alone."""
    summary, volume, floor = result.summary, result.volume, result.summary.floor()
    table = Table("score", title="Over all classes")
    for column in ("value", "95 % interval", "best constant", *(("volume alone",) if volume else ())):
        table.add_column(column, justify="right")
    of_volume = {} if volume is None else volume_numbers(volume)
    for name, value in overall_numbers(summary).items():
        interval = getattr(summary.intervals, name, None)
        table.add_row(
            SCORE_NAMES[name],
            number_text(value),
            "" if interval is None else interval_text(interval),
            number_text(floor[name]) if name in floor else "",
            *((number_text(of_volume[name]) if name in of_volume else "",) if volume else ()),
        )
    return table


SCORE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "mcc": "Matthews correlation",
    "kappa": "Cohen's kappa",
    "brier": "Brier (0 to 2, lower is better)",
    "nll": "NLL (lower is better)",
    "ece": "ECE, 15 bins (lower is better)",
}


def overall_numbers(summary: ClassificationSummary) -> dict[str, float | None]:
    """The scores over all classes by the keys of SCORE_NAMES; None or NaN where there is none."""
    plain = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "brier", "nll", "ece")
    numbers: dict[str, float | None] = {name: getattr(summary, name) for name in plain}
    numbers |= {name: getattr(summary, name).value for name in ("auroc", "mcc", "kappa")}
    return {name: numbers[name] for name in SCORE_NAMES}


def volume_numbers(volume: VolumeBaseline) -> dict[str, float | None]:
    """The same scores of the predicted volumes alone, where they exist."""
    plain = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
    numbers: dict[str, float | None] = {name: getattr(volume, name) for name in plain}
    numbers |= {name: getattr(volume.probability, name) for name in ("brier", "nll", "ece")}
    return numbers | {"auroc": volume.auroc.value}


def _confusion_table(summary: ClassificationSummary) -> Table:
    table = Table("reference \\ predicted", title="Confusion matrix")
    for name in summary.class_names:
        table.add_column(escape(name), justify="right")
    for name, row in zip(summary.class_names, summary.confusion, strict=True):
        table.add_row(escape(name), *(str(count) for count in row))
    return table


def _ratio_text(ratio: Ratio) -> str:
    return "inf" if ratio.value == float("inf") else number_text(ratio.value, digits=2)
