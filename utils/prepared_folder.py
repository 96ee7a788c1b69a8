"""The preprocessed folder: the names of its files, and the records that describe its cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from utils.contracts import Plan, PreprocessedCase
from utils.errors import DatasetError
from utils.storage import read_record, write_json

IMAGE, LABEL, FOREGROUND, ORIGINAL_LABEL, META = "_x.npy", "_y.npy", "_fg.npy", "_orig_lbl.npy", "_meta.npy"
PRIOR = "_prior.npy"  # a previous stage's label map, the input of the next
CASE_FILES = (IMAGE, LABEL, FOREGROUND, ORIGINAL_LABEL, META, PRIOR)
PLAN, FINGERPRINT, DATASET, MANIFEST = "plan.json", "fingerprint.json", "dataset.json", "manifest.json"
SPLITS = "splits_final.json"
RESERVED_IDS = frozenset(
    Path(name).stem for name in (PLAN, FINGERPRINT, DATASET, MANIFEST, SPLITS)
)  # a case of this name would overwrite the folder's own files


def case_file(folder: Path, case_id: str, suffix: str) -> Path:
    """Where one array of a case lies."""
    return folder / f"{case_id}{suffix}"


def record_file(folder: Path, case_id: str) -> Path:
    """Where the record of a case lies; it is written last, so its presence marks a complete case."""
    return folder / f"{case_id}.json"


def write_prepared_case(folder: Path, case: PreprocessedCase) -> None:
    """Write the record of a complete case, with file names only: the folder may be moved."""
    local = replace(
        case,
        image=Path(case.image.name),
        label=None if case.label is None else Path(case.label.name),
        foreground=None if case.foreground is None else Path(case.foreground.name),
    )
    write_json(record_file(folder, case.case_id), local)


def read_prepared_case(folder: Path, case_id: str) -> PreprocessedCase:
    """The record of one case, with absolute paths."""
    path = record_file(folder, case_id)
    if not path.is_file():
        raise DatasetError(f"{folder} has no complete case {case_id!r}. Run preprocess.py again.")
    case = read_record(PreprocessedCase, path)
    root = folder.resolve()
    return replace(
        case,
        image=root / case.image,
        label=None if case.label is None else root / case.label,
        foreground=None if case.foreground is None else root / case.foreground,
    )


def complete_case_ids(folder: Path) -> tuple[str, ...]:
    """Names of the cases whose record exists, sorted; a half-written case is not among them."""
    images = (path.name.removesuffix(IMAGE) for path in folder.glob(f"*{IMAGE}"))
    return tuple(sorted(case_id for case_id in images if record_file(folder, case_id).is_file()))


def list_prepared(folder: Path) -> tuple[PreprocessedCase, ...]:
    """All complete cases, sorted by name."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist. Run preprocess.py first.")
    return tuple(read_prepared_case(folder, case_id) for case_id in complete_case_ids(folder))


def read_plan(folder: Path) -> Plan:
    """The plan that the cases of `folder` were prepared with."""
    path = folder / PLAN
    if not path.is_file():
        raise DatasetError(f"{folder} has no {PLAN}. Run preprocess.py first, in training mode.")
    return read_record(Plan, path)


def remove_case(folder: Path, case_id: str) -> None:
    """Delete a case, its record first: an interruption leaves no record without arrays."""
    record_file(folder, case_id).unlink(missing_ok=True)
    for suffix in CASE_FILES:
        case_file(folder, case_id, suffix).unlink(missing_ok=True)
