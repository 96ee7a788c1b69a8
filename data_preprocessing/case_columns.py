"""Tables that say one thing of each case: a column of a CSV file, or a JSON object."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from data_preprocessing.case_files import NIFTI_ENDINGS, split_ending
from data_preprocessing.faults import make_fault
from utils.errors import DatasetError, Fault
from utils.storage import read_json

CLASS_FILES = (
    "classes.csv",
    "classification_labels.csv",
    "classification.json",
)  # the first that exists counts
CASE_COLUMNS = ("case", "case_id", "name", "names")  # in any letter case
CLASS_COLUMNS = ("class", "subtype")
MAX_TABLE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table, and where it stands, for messages."""

    text: str
    where: str


def find_class_file(folder: Path) -> Path | None:
    """The table of classes in `folder`, by the names that this program and the reference systems use."""
    return next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)


def read_class_file(
    file: Path, faults: list[Fault], *, case_column: str | None = None, class_column: str | None = None
) -> dict[str, Cell]:
    """Case id -> class of a JSON object {case: class} or of a CSV file.

    Columns without a name given are recognised by the names that are in use: case or Case_id or Names,
    class or Subtype.
    """
    if file.suffix == ".json":
        return _read_object(file, faults)
    rows = _read_rows(file, faults)
    if rows is None:
        return {}
    header = [name.strip() for name in rows[0]]
    case_column = case_column or _known(header, CASE_COLUMNS)
    class_column = class_column or _known(header, CLASS_COLUMNS)
    return _column(file, rows, (case_column, class_column), faults)


def read_column(file: Path, case_column: str, value_column: str, faults: list[Fault]) -> dict[str, Cell]:
    """Case id -> entry of one column of a CSV file.

    Commas, semicolons and tabs separate; a byte order mark, spaces around entries and .nii.gz behind a case
    are dropped. A missing column and a case with two rows are faults that name the line.
    """
    rows = _read_rows(file, faults)
    return {} if rows is None else _column(file, rows, (case_column, value_column), faults)


def case_name(text: str) -> str:
    """The case that a table means: tables of the reference systems name its mask file."""
    return split_ending(text, NIFTI_ENDINGS)[0] or text


def _known(header: list[str], names: tuple[str, ...]) -> str:
    """The column with the first of `names`, in any letter case; the usual name where there is none."""
    return next((column for name in names for column in header if column.casefold() == name), names[0])


def _read_rows(file: Path, faults: list[Fault]) -> list[list[str]] | None:
    """All lines, the header first; None, with a fault, where the file cannot be read or is empty."""
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"it has more than {MAX_TABLE_BYTES} bytes")
        text = file.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True))
        if not rows:
            raise ValueError("it is empty")
    except (OSError, ValueError, csv.Error) as error:
        what = f"the table cannot be read: {error}."
        faults.append(make_fault("E121", file, what, "store it as UTF-8 text, separated by commas."))
        return None
    return rows


def _column(
    file: Path, rows: list[list[str]], columns: tuple[str, str], faults: list[Fault]
) -> dict[str, Cell]:
    header = [name.strip() for name in rows[0]]
    for column in columns:
        if header.count(column) != 1:
            near = get_close_matches(column, header, n=1)
            hint = f" Did you mean {near[0]!r}?" if near and near[0] != column else ""
            what = f"line 1 should name the column {column!r} once, it has {header}.{hint}"
            faults.append(make_fault("E121", file, what, "correct the header, or the name in dataset.json."))
            return {}
    return _entries(file, rows, (header.index(columns[0]), header.index(columns[1])), faults)


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _entries(
    file: Path, rows: list[list[str]], columns: tuple[int, int], faults: list[Fault]
) -> dict[str, Cell]:
    entries: dict[str, Cell] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(text.strip() for text in row):
            continue
        if len(row) <= max(columns):
            what = f"line {line} has {len(row)} entries, the header has {len(rows[0])}."
            faults.append(make_fault("E121", file, what, "complete the line."))
            continue
        case_id, text = case_name(row[columns[0]].strip()), row[columns[1]].strip()
        if case_id in entries:
            what = f"line {line} repeats the case, which is already in {entries[case_id].where}."
            faults.append(make_fault("E122", file, what, "keep one row for each case.", case_id))
            continue
        entries[case_id] = Cell(text=text, where=f"{file.name} line {line}")
    return entries


def _read_object(file: Path, faults: list[Fault]) -> dict[str, Cell]:
    """Case id -> class of {case: class}; a class is a text or a whole number, null where it is unknown."""
    try:
        data = read_json(file)
    except DatasetError as error:
        faults.append(make_fault("E121", file, str(error), 'write {"case": class, ...}.'))
        return {}
    is_object = isinstance(data, dict)
    odd = [key for key, value in data.items() if not _is_class(value)] if is_object else []
    if not is_object or odd:
        found = f"{odd[0]!r}: {data[odd[0]]!r:.80}" if odd else f"a {type(data).__name__}"
        what = f"the file should map each case to its class, got {found}."
        faults.append(make_fault("E121", file, what, 'write {"case": class, ...}.'))
        return {}
    entries: dict[str, Cell] = {}
    for key, value in data.items():
        case_id = case_name(key.strip())
        if case_id in entries:
            what = f"the key {key!r} repeats the case."
            faults.append(make_fault("E122", file, what, "keep one entry for each case.", case_id))
            continue
        entries[case_id] = Cell(
            text="" if value is None else str(value).strip(), where=f"{file.name}, {key!r}"
        )
    return entries


def _is_class(value: object) -> bool:
    return value is None or (isinstance(value, int | str) and not isinstance(value, bool))
