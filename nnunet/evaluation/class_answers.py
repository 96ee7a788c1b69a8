"""Predicted classes read back from any of the files that this program or the reference systems write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet.evaluation.class_outputs import CASE_ENDING, SUBTYPE_COLUMNS, SUBTYPE_TABLE
from nnunet.evaluation.pairing import MASK_ENDINGS, listed
from nnunet.evaluation.tables import (
    TIE_TOLERANCE,
    VOLUME_PREFIX,
    read_class_names,
    read_class_predictions,
    read_rows,
)
from utils.errors import DatasetError
from utils.storage import read_json

PREDICTIONS_TABLE = "predictions.csv"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedClasses:
    """The answers of one file or folder of files, in the order of `case_ids`.

    `predicted` (N,) int64 are class indices; `class_probs` (N, K) and `volumes_ml` (N, S) are None where the
    source does not hold them.
    """

    source: Path
    case_ids: tuple[str, ...]
    predicted: np.ndarray
    class_probs: np.ndarray | None = None
    volumes_ml: np.ndarray | None = None


def class_index(text: str, class_names: Sequence[str]) -> int | None:
    """The class an entry means: its name, or its index where no name is a number; None for neither."""
    if text in class_names:
        return list(class_names).index(text)
    is_index = text.isdecimal() and int(text) < len(class_names)
    return int(text) if is_index and not any(name.isdecimal() for name in class_names) else None


def find_class_answers(path: Path) -> Path:
    """The source in a folder: predictions.csv, else <case>_classification.json, else subtype_results.csv.

    So those with probabilities come first. A file stands for itself. DatasetError where there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DatasetError(f"{path} does not exist.")
    if source := class_answers_in(path):
        return source
    raise DatasetError(
        f"{path} holds no predicted classes: neither {PREDICTIONS_TABLE} with probabilities, nor "
        f"<case>{CASE_ENDING}, nor {SUBTYPE_TABLE}."
    )


def class_answers_in(folder: Path) -> Path | None:
    """As `find_class_answers`; None where the folder tells no class."""
    table = folder / PREDICTIONS_TABLE
    if table.is_file() and read_class_names(table):
        return table
    if any(folder.glob(f"*{CASE_ENDING}")):
        return folder
    return folder / SUBTYPE_TABLE if (folder / SUBTYPE_TABLE).is_file() else None


def names_in(source: Path) -> tuple[str, ...]:
    """The class names that the source itself brings, in its order; empty where it has none."""
    records = _records_in(source)
    if not records:
        return read_class_names(source)
    record = read_json(records[0])
    if not isinstance(record, dict):
        return ()
    names, count = record.get("class_names"), record.get("num_classes")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(str(index) for index in range(count)) if isinstance(count, int) else ()


def texts_in(source: Path) -> tuple[str, ...]:
    """The classes that a subtype table names, each as it stands there; empty for other sources."""
    if _records_in(source) or read_class_names(source):
        return ()
    return tuple((row.get(SUBTYPE_COLUMNS[1]) or "").strip() for row in read_rows(source)[1])


def read_class_answers(source: Path, class_names: Sequence[str]) -> PredictedClasses:
    """Read what `find_class_answers` found; a case that occurs twice or an unknown class is an error."""
    if records := _records_in(source):
        return _read_records(records, source, class_names)
    if read_class_names(source):
        return _read_predictions(source, class_names)
    return _read_subtypes(source, class_names)


def _records_in(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(source.glob(f"*{CASE_ENDING}"))
    return [source] if source.name.endswith(CASE_ENDING) else []


def _read_predictions(path: Path, class_names: Sequence[str]) -> PredictedClasses:
    by_index = [str(index) for index in range(len(class_names))]
    # Columns may be called by index where the caller knows better names.
    is_by_index = sorted(read_class_names(path)) == sorted(by_index)
    table = read_class_predictions(path, by_index if is_by_index else class_names)
    return PredictedClasses(
        source=path,
        case_ids=table.case_ids,
        predicted=table.class_probs.argmax(axis=1),
        class_probs=table.class_probs,
        volumes_ml=_volumes(path),
    )


def _volumes(path: Path) -> np.ndarray | None:
    """The volume columns of predictions.csv (N, S); None without any, or where a cell is no volume."""
    columns, rows = read_rows(path)
    names = [name for name in columns if name.startswith(VOLUME_PREFIX)]
    try:
        volumes = np.array([[float(row[name]) for name in names] for row in rows])
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: a volume is not a number ({error}).") from error
    if not names or not rows:
        return None
    if not np.isfinite(volumes).all() or (volumes < 0).any():
        raise DatasetError(f"{path}: a volume is negative or not finite.")
    return volumes


def _read_subtypes(path: Path, class_names: Sequence[str]) -> PredictedClasses:
    columns, rows = read_rows(path)
    if missing := [name for name in SUBTYPE_COLUMNS if name not in columns]:
        raise DatasetError(
            f"{path} lacks the columns {missing}; it has {list(columns)}. Its first line should be "
            f"{','.join(SUBTYPE_COLUMNS)}."
        )
    case_ids, predicted = list[str](), list[int]()
    for line, row in enumerate(rows, start=2):
        case_ids.append(_without_ending((row[SUBTYPE_COLUMNS[0]] or "").strip()))
        text = (row[SUBTYPE_COLUMNS[1]] or "").strip()
        index = class_index(text, class_names)
        if index is None or not case_ids[-1]:
            raise DatasetError(
                f"{path} line {line}: {case_ids[-1] or 'no name'} is given the class {text!r}, "
                f"which is none of {list(class_names)}."
            )
        predicted.append(index)
    _refuse_doubles(case_ids, path)
    return PredictedClasses(
        source=path, case_ids=tuple(case_ids), predicted=np.array(predicted, dtype=np.int64)
    )


def _read_records(paths: Sequence[Path], source: Path, class_names: Sequence[str]) -> PredictedClasses:
    case_ids = [path.name.removesuffix(CASE_ENDING) for path in paths]
    probs = [_read_record(path, class_names) for path in paths]
    table = np.array(probs, dtype=np.float64)
    return PredictedClasses(
        source=source, case_ids=tuple(case_ids), predicted=table.argmax(axis=1), class_probs=table
    )


def _read_record(path: Path, class_names: Sequence[str]) -> list[float]:
    record = read_json(path)
    probs = record.get("probs") if isinstance(record, dict) else None
    numbers = [value for value in probs if isinstance(value, int | float)] if isinstance(probs, list) else []
    if len(numbers) != len(class_names) or len(numbers) != len(probs or []):
        raise DatasetError(f"{path}: probs should be {len(class_names)} probabilities, got {probs!r:.80}.")
    called = record.get("pred")
    if isinstance(called, bool) or not isinstance(called, int) or not 0 <= called < len(numbers):
        raise DatasetError(f"{path}: pred should be a class index below {len(numbers)}, got {called!r}.")
    if numbers[called] < max(numbers) - TIE_TOLERANCE:
        raise DatasetError(f"{path}: pred is {called}, but class {int(np.argmax(numbers))} is more probable.")
    return [float(value) for value in numbers]


def _without_ending(name: str) -> str:
    ending = next((ending for ending in MASK_ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _refuse_doubles(case_ids: Sequence[str], path: Path) -> None:
    if doubled := sorted({case_id for case_id in case_ids if case_ids.count(case_id) > 1}):
        raise DatasetError(f"{path} has more than one row for {listed(doubled)}. Keep one row for each case.")
