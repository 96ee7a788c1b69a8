"""Tables for spreadsheets: the overlap of every case as CSV, and the class predictions read back from CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet.evaluation.overlap import CaseOverlap, StructureOverlap
from utils.errors import DatasetError
from utils.storage import atomic_file

METRIC_COLUMNS = (
    "case",
    "label",
    "Dice",
    "IoU",
    "TP",
    "FP",
    "FN",
    "n_pred",
    "n_ref",
    "volume_pred_ml",
    "volume_ref_ml",
    "missing_prediction",
)
PROBABILITY_PREFIX = "prob_"
VOLUME_PREFIX = "volume_ml_"
PREDICTED_COLUMN = "predicted_class"
TIE_TOLERANCE = 1e-3  # a rounded table may show two equal probabilities where the model saw a winner


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassPredictions:
    """Class probabilities (N, K) float64 of `case_ids`, columns in the order of the class names."""

    case_ids: tuple[str, ...]
    class_probs: np.ndarray


def write_overlap_table(path: Path, cases: Sequence[CaseOverlap]) -> None:
    """One row per case and structure, the whole organ last; an undefined number is an empty cell."""
    rows = [_row(case, item) for case in cases for item in (*case.structures, case.whole_organ)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(METRIC_COLUMNS)
    writer.writerows(rows)
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())


def read_class_names(path: Path) -> tuple[str, ...]:
    """The classes of a predictions table, in the order of its probability columns."""
    columns, _ = read_rows(path)
    return tuple(
        name.removeprefix(PROBABILITY_PREFIX) for name in columns if name.startswith(PROBABILITY_PREFIX)
    )


def read_class_predictions(path: Path, class_names: Sequence[str]) -> ClassPredictions:
    """Read `case, prob_<class>..., predicted_class` (comma or semicolon, with or without a byte-order mark).

    Raises DatasetError with the line when a column is missing, a case occurs twice, a number does not parse,
    or `predicted_class` is not the most probable class.
    """
    columns, rows = read_rows(path)
    wanted = ["case", *(f"{PROBABILITY_PREFIX}{name}" for name in class_names)]
    if missing := [name for name in wanted if name not in columns]:
        raise DatasetError(f"{path} lacks the columns {missing}; it has {list(columns)}.")
    case_ids: list[str] = []
    probs = np.zeros((len(rows), len(class_names)))
    for index, row in enumerate(rows):
        where = f"{path} line {index + 2}"
        case_id = (row["case"] or "").strip()
        if not case_id or case_id in case_ids:
            raise DatasetError(f"{where}: the case {case_id!r} is empty or occurs twice.")
        case_ids.append(case_id)
        probs[index] = [_probability(row[name], where, name) for name in wanted[1:]]
        _refuse_other_winner((row.get(PREDICTED_COLUMN) or "").strip(), probs[index], class_names, where)
    return ClassPredictions(case_ids=tuple(case_ids), class_probs=probs)


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Column names and rows of a CSV file (comma or semicolon, with or without a byte-order mark)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a readable CSV file ({error}).") from error
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = tuple(name.strip() for name in reader.fieldnames or ())
    reader.fieldnames = list(columns)
    return columns, list(reader)


def _probability(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise DatasetError(f"{where}: {column} should be a probability from 0 to 1, got {text!r}.")
    return value


def _refuse_other_winner(name: str, probs: np.ndarray, class_names: Sequence[str], where: str) -> None:
    if not name:
        return
    if name not in class_names:
        raise DatasetError(f"{where}: predicted_class {name!r} is none of {list(class_names)}.")
    if probs[list(class_names).index(name)] < probs.max() - TIE_TOLERANCE:
        winner = class_names[int(probs.argmax())]
        raise DatasetError(f"{where}: predicted_class is {name!r}, but {winner!r} is more probable.")


def _row(case: CaseOverlap, item: StructureOverlap) -> tuple[str | int, ...]:
    counts = item.counts
    return (
        case.case_id,
        item.structure.name,
        _cell(item.dice),
        _cell(item.iou),
        counts.true_positives,
        counts.false_positives,
        counts.false_negatives,
        counts.n_pred,
        counts.n_ref,
        _cell(counts.n_pred * case.voxel_ml),
        _cell(counts.n_ref * case.voxel_ml),
        int(case.is_missing),
    )


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
