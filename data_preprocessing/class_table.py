"""Case-level facts beside the images: the class of each case, and the patient it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data_preprocessing.case_columns import Cell, find_class_file, read_class_file, read_column
from data_preprocessing.case_files import DatasetFolder, resolve_path
from data_preprocessing.dataset_json import check_spelling
from data_preprocessing.faults import DATASET_WIDE, make_fault
from utils.contracts import RawCase
from utils.errors import Fault

CLASS_KEYS = ("name", "classes", "source", "case_column", "class_column", "missing", "pattern")
GROUP_KEYS = ("source", "case_column", "group_column")
MISSING_TEXTS = {"", "nan", "na", "n/a", "none", "null", "?"}
MISSING_RULES = ("error", "mask")


@dataclass(frozen=True, kw_only=True)
class ClassScheme:
    """The classes of a dataset and what is known of each case; no names: no case-level class."""

    title: str = "class"
    names: tuple[str, ...] = ()
    cells: tuple[tuple[str, Cell], ...] = ()  # case id, entry
    missing: str = "error"


def read_classes(
    folder: DatasetFolder, data: dict[str, Any], cases: Sequence[RawCase], faults: list[Fault]
) -> ClassScheme:
    """The classes: by the block `classification`, else a table by its name, else class folders, else none."""
    file = folder.root / "dataset.json"
    block = data.get("classification")
    if block is None:
        return _classes_without_block(folder, data.get("classes", []), cases, faults)
    if not isinstance(block, dict) or not _is_block_sound(block, file, faults):
        if not isinstance(block, dict):
            what = f"classification is a {type(block).__name__}."
            faults.append(make_fault("E125", file, what, 'write "classification": {"classes": [...], ...}.'))
        return ClassScheme()
    if "pattern" in block:
        cells = _cells_by_pattern(block["pattern"], cases)
    elif "source" in block:
        cells = _cells_by_table(folder, block, faults)
    else:
        inner = _classes_without_block(folder, [], cases, faults)
        cells = dict(inner.cells)
    return ClassScheme(
        title=block.get("name", "class"),
        names=_class_names(block.get("classes", []), cells),
        cells=tuple(cells.items()),
        missing=block.get("missing", "error"),
    )


def _is_names(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(name, str) and name.strip() for name in value)


def _is_block_sound(block: dict[str, Any], file: Path, faults: list[Fault]) -> bool:
    """Types and values of the block `classification`; misspelt keys are named."""
    num_before = len(faults)
    check_spelling(block, CLASS_KEYS, file, faults)

    def complain(what: str, fix: str) -> None:
        faults.append(make_fault("E125", file, f"classification: {what}", fix))

    for key in ("name", "source", "case_column", "class_column", "pattern"):
        if key in block and not isinstance(block[key], str):
            complain(f"{key} should be text, got {block[key]!r}.", "put it in quotes.")
    names = block.get("classes", ["any"])
    if not _is_names(names) or len(set(names)) != len(names):
        complain(f"classes should list different names, got {names!r:.80}.", 'write "classes": ["a", "b"].')
    if block.get("missing", "error") not in MISSING_RULES:
        complain(f"missing is {block['missing']!r}.", f"choose one of {MISSING_RULES}.")
    if isinstance(pattern := block.get("pattern", "()"), str):
        try:
            if re.compile(pattern).groups != 1:
                complain(
                    f"the pattern {pattern!r} needs exactly one group (...).", "enclose the class in it."
                )
        except re.error as error:
            complain(f"the pattern {pattern!r} is not valid: {error}.", "correct the regular expression.")
    return len(faults) == num_before


def _classes_without_block(
    folder: DatasetFolder, names: Any, cases: Sequence[RawCase], faults: list[Fault]
) -> ClassScheme:
    """`names`: the key `classes` of dataset.json. Where no case has a class it may mean something else."""
    table = find_class_file(folder.root)
    cells = _cells_by_folder(cases) if table is None else read_class_file(table, faults)
    if names != [] and not (_is_names(names) and len(set(names)) == len(names)):
        if cells:
            what = f"classes should list different names, got {names!r:.80}."
            fix = 'write "classes": ["a", "b"].'
            faults.append(make_fault("E125", folder.root / "dataset.json", what, fix))
        names = []
    return ClassScheme(names=_class_names(names, cells), cells=tuple(cells.items()))


def _cells_by_table(folder: DatasetFolder, block: dict[str, Any], faults: list[Fault]) -> dict[str, Cell]:
    path = resolve_path(folder, block["source"], DATASET_WIDE, faults)
    if path is None:
        return {}
    return read_class_file(
        path, faults, case_column=block.get("case_column"), class_column=block.get("class_column")
    )


def _cells_by_pattern(pattern: str, cases: Sequence[RawCase]) -> dict[str, Cell]:
    matches = {case.case_id: re.search(pattern, case.case_id) for case in cases}
    return {
        case_id: Cell(text=match[1] or "", where=f"the case id by the pattern {pattern!r}")
        for case_id, match in matches.items()
        if match
    }


def _cells_by_folder(cases: Sequence[RawCase]) -> dict[str, Cell]:
    """imagesTr/benign/case_0000.nii.gz is a benign case; empty unless every training case lies so."""
    folders = {case.case_id: case.images[0].parent for case in cases if case.images[0].parent.parent.name}
    in_class_folder = {
        case_id: Cell(text=folder.name, where=f"the folder {folder.name}")
        for case_id, folder in folders.items()
        if folder.parent.name == "imagesTr"
    }
    return in_class_folder if len(in_class_folder) == len(cases) else {}


def _class_names(names: Sequence[str], cells: dict[str, Cell]) -> tuple[str, ...]:
    found = {cell.text for cell in cells.values() if cell.text.lower() not in MISSING_TEXTS}
    # Class 10 comes behind class 9, not behind class 1.
    in_order = sorted(found, key=int) if all(text.isdecimal() for text in found) else sorted(found)
    return tuple(name.strip() for name in names) or tuple(in_order)


def with_classes(
    cases: Sequence[RawCase], scheme: ClassScheme, file: Path, faults: list[Fault]
) -> tuple[RawCase, ...]:
    """The training cases with their class; a class that is missing or unknown is a fault (or masked)."""
    cells = dict(scheme.cells)
    return tuple(
        replace(case, class_target=_target(case, cells.get(case.case_id), scheme, file, faults))
        for case in cases
    )


def _target(
    case: RawCase, cell: Cell | None, scheme: ClassScheme, file: Path, faults: list[Fault]
) -> int | None:
    if not scheme.names:
        return None
    if cell is not None and cell.text in scheme.names:
        return scheme.names.index(cell.text)
    if cell is None or cell.text.lower() in MISSING_TEXTS:
        if scheme.missing == "error":
            what = "the case has no class."
            if cell is not None:
                what = f"{cell.where} holds {cell.text!r}, which is no class."
            fix = 'add its class, or set "missing": "mask" in the block classification.'
            faults.append(make_fault("E124", file, what, fix, case.case_id))
        return None
    near = get_close_matches(cell.text, scheme.names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    what = f"{cell.where} holds the class {cell.text!r}, which is not one of {list(scheme.names)}.{hint}"
    faults.append(
        make_fault("E123", file, what, "correct the entry, or add the class to the list.", case.case_id)
    )
    return None


def known_classes(cases: Sequence[RawCase], scheme: ClassScheme) -> tuple[RawCase, ...]:
    """The test cases with their class where one is known; nothing is asked of them."""
    cells = dict(scheme.cells)
    texts = [cells[case.case_id].text if case.case_id in cells else None for case in cases]
    return tuple(
        replace(case, class_target=scheme.names.index(text) if text in scheme.names else None)
        for case, text in zip(cases, texts, strict=True)
    )


def read_patients(folder: DatasetFolder, data: dict[str, Any], faults: list[Fault]) -> dict[str, Cell] | None:
    """Case id -> patient, by the block `grouping`; None without one (then each case is its own patient)."""
    block = data.get("grouping")
    if block is None:
        return None
    file = folder.root / "dataset.json"
    if not isinstance(block, dict) or not all(isinstance(block.get(key), str) for key in GROUP_KEYS):
        what = f"grouping should have the texts {list(GROUP_KEYS)}, got {block!r:.80}."
        faults.append(make_fault("E125", file, what, "complete the block, or remove it."))
        if isinstance(block, dict):
            check_spelling(block, GROUP_KEYS, file, faults)
        return None
    path = resolve_path(folder, block["source"], DATASET_WIDE, faults)
    if path is None:
        return None
    return read_column(path, block["case_column"], block["group_column"], faults)


def with_patients(
    cases: Sequence[RawCase], patients: dict[str, Cell] | None, file: Path, faults: list[Fault]
) -> tuple[RawCase, ...]:
    """The cases with their patient; a case that the table lacks could leak between folds, a fault."""
    if patients is None:
        return tuple(cases)
    grouped = []
    for case in cases:
        cell = patients.get(case.case_id)
        if cell is None or cell.text.lower() in MISSING_TEXTS:
            what = (
                "the case has no patient."
                if cell is None
                else f"{cell.where} holds {cell.text!r}, no patient."
            )
            faults.append(make_fault("E124", file, what, "complete the group table.", case.case_id))
        else:
            case = replace(case, patient_id=cell.text)
        grouped.append(case)
    return tuple(grouped)
