"""The preprocessed folder: the names of its files, and the records that describe its cases."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.contracts import Plan, PreprocessedCase
from utils.errors import DatasetError, UserError
from utils.storage import from_plain, read_json, read_record, write_json

IMAGE, LABEL, FOREGROUND, ORIGINAL_LABEL, META = "_x.npy", "_y.npy", "_fg.npy", "_orig_lbl.npy", "_meta.npy"
PRIOR = "_prior.npy"  # a previous stage's label map, the input of the next
CASE_FILES = (IMAGE, LABEL, FOREGROUND, ORIGINAL_LABEL, META, PRIOR)
PRIORS = "priors.json"  # which networks of the previous stage those are from
PLAN, FINGERPRINT, DATASET, MANIFEST = "plan.json", "fingerprint.json", "dataset.json", "manifest.json"
SPLITS = "splits_final.json"
DEFAULT_PLAN = "default"  # the name of plan.json
PLANS = "plans"  # further plans of a folder, NAME.json each
PLAN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Plans whose names no other one can have, and the commands that make them.
LOWRES, CASCADE = "lowres", "cascade"
MADE_BY = {LOWRES: "preprocess.py --configuration 3d_lowres", CASCADE: "scripts/cascade.py"}
INHERITS = "inherits_from"  # names the plan from which such a file takes the fields that it leaves out
RESERVED_IDS = frozenset(
    Path(name).stem for name in (PLAN, FINGERPRINT, DATASET, MANIFEST, SPLITS, PRIORS)
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


def check_plan_name(name: str) -> str:
    """`name`; UserError if no file and no folder can be called so."""
    if not PLAN_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of a plan: it should begin with a letter or a digit, and have only "
            "letters, digits, _, - and . in it."
        )
    return name


def plan_file(folder: Path, name: str = DEFAULT_PLAN) -> Path:
    """Where the plan called `name` lies that is trained on the volumes of `folder`."""
    return folder / PLAN if name == DEFAULT_PLAN else folder / PLANS / f"{check_plan_name(name)}.json"


def plan_path(folder: Path, name: str = DEFAULT_PLAN) -> Path:
    """The file that the plan `name` of `folder` is read from: `plan_file`, else that of its own folder."""
    path = plan_file(folder, name)
    return path if path.is_file() or name == DEFAULT_PLAN else plan_file(own_folder(folder, name))


def own_folder(folder: Path, name: str) -> Path:
    """The prepared folder of the plan `name` of `folder`, where it needs volumes of its own."""
    whole = folder if folder.name else folder.resolve()
    return whole.with_name(f"{whole.name}_{check_plan_name(name)}")


def plan_names(folder: Path) -> tuple[str, ...]:
    """The plans of a prepared folder: those beside plan.json, and those with volumes of their own."""
    named = {path.stem for path in (folder / PLANS).glob("*.json")}
    whole = folder.resolve()
    own = {
        path.parent.name.removeprefix(f"{whole.name}_")
        for path in whole.parent.glob(f"{whole.name}_*/{PLAN}")
    }
    return (*((DEFAULT_PLAN,) if plan_file(folder).is_file() else ()), *sorted(named | own))


def read_plan(folder: Path, name: str = DEFAULT_PLAN) -> Plan:
    """The plan of `folder` with this name; by default the one that its cases were prepared with.

    A further plan lies in `plans/`, where it may leave out the fields that it inherits, or is that of the
    plan's own folder.
    """
    return from_plain(Plan, _plan_fields(folder, name, ()), source=f"{folder}: the plan {name}")


def _plan_fields(folder: Path, name: str, heirs: tuple[str, ...]) -> dict[str, Any]:
    path = plan_path(folder, name)
    if not path.is_file():
        raise DatasetError(_no_plan(folder, name))
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} should hold an object with the fields of a plan.")
    parent = content.pop(INHERITS, None)
    if parent is None:
        return content
    line = (*heirs, name)
    if not isinstance(parent, str) or parent in line:
        told = " from ".join(map(str, (*line, parent)))
        raise DatasetError(f"{path}: {INHERITS} should name a plan above this one, got: {told}.")
    return _plan_fields(folder, parent, line) | content


def _no_plan(folder: Path, name: str) -> str:
    if name == DEFAULT_PLAN:
        return f"{folder} has no {PLAN}. Run preprocess.py first, in training mode."
    known = ", ".join(plan_names(folder)) or "none"
    command = MADE_BY.get(name, f"preprocess.py --plan_name {name}")
    return f"{folder} has no plan called {name}; it has: {known}. {command} makes one."


def remove_case(folder: Path, case_id: str) -> None:
    """Delete a case, its record first: an interruption leaves no record without arrays."""
    record_file(folder, case_id).unlink(missing_ok=True)
    for suffix in CASE_FILES:
        case_file(folder, case_id, suffix).unlink(missing_ok=True)
