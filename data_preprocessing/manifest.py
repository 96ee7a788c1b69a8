"""The manifest of a preprocessed folder: from which files and by which rules each case was made.

It is written before the cases are prepared, after the records of outdated cases were deleted. So at any
moment, even after a power cut, a case is up to date exactly if the manifest lists its inputs and its record
exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preprocessing.normalisers import NORMALISERS
from data_preprocessing.planners import PlannerOptions
from data_preprocessing.resampling import CUBIC
from data_preprocessing.volume_io import companion_files
from utils.contracts import Plan, RawCase
from utils.errors import DatasetError
from utils.prepared_folder import MANIFEST, complete_case_ids, remove_case
from utils.storage import file_hash, read_record, to_plain, write_json

FORMAT_VERSION = 2  # raised whenever the same input and plan give other arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One raw file as it was when it was read."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInputs:
    """Everything that one prepared case was made from, but for the plan."""

    case_id: str
    patient_id: str
    class_target: int | None
    files: tuple[InputFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBy:
    """A further plan of the folder, and the hash of the options that it was made with."""

    name: str
    planner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Inputs and rules of a folder."""

    version: int
    mode: str
    dtype: str
    rules: str  # hash of what the plan says about the arrays
    planner: str  # hash of the options that the plan was made with
    cases: tuple[CaseInputs, ...]
    plans: tuple[PlannedBy, ...] = ()  # further ones that were made, not written by hand
    splits: str | None = None  # SHA-256 of the folder's copy of the dataset's own folds

    def planner_of(self, name: str) -> str | None:
        """The hash of the options that the further plan `name` was made with; None where nobody made it."""
        return next((entry.planner for entry in self.plans if entry.name == name), None)


def describe_inputs(case: RawCase) -> CaseInputs:
    """Size, time and SHA-256 of the files of a case; reads them."""
    paths = _files_of(case)
    files = []
    for path in paths:
        status = path.stat()
        files.append(
            InputFile(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=file_hash(path))
        )
    return CaseInputs(
        case_id=case.case_id,
        patient_id=case.patient_id,
        class_target=case.class_target,
        files=tuple(files),
    )


def _files_of(case: RawCase) -> tuple[Path, ...]:
    """Images, label, and what belongs to them in files of its own, such as the voxels of a .mhd."""
    paths = (*case.images, *((case.label,) if case.label else ()))
    return (*paths, *(beside for path in paths for beside in companion_files(path)))


def is_current(inputs: CaseInputs, case: RawCase) -> bool:
    """Whether `case` is still what `inputs` describes; contents are read only where size or time differ."""
    paths = _files_of(case)
    if (inputs.patient_id, inputs.class_target) != (case.patient_id, case.class_target):
        return False
    if len(paths) != len(inputs.files) or any(p != f.path for p, f in zip(paths, inputs.files, strict=True)):
        return False
    return all(_is_same_file(file) for file in inputs.files)


def _is_same_file(file: InputFile) -> bool:
    try:
        status = file.path.stat()
    except OSError:
        return False
    if status.st_size != file.size:
        return False
    return status.st_mtime_ns == file.mtime_ns or file_hash(file.path) == file.sha256


def refuse_changed(inputs: CaseInputs) -> None:
    """Raise a DatasetError if a file changed between the check of a case and its use."""
    for file in inputs.files:
        status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise DatasetError(
                f"Case {inputs.case_id}: {file.path} changed while the dataset was being prepared. "
                "Let nothing write to the dataset and start again."
            )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True).encode()).hexdigest()


def planner_hash(
    options: PlannerOptions, *, configuration: str, foreground_channel: bool, source: Plan | None = None
) -> str:
    """Hash of everything but the fingerprint that a plan follows from; with a `source`, that plan too."""
    sources = [] if source is None else [source]
    return _hash([options.decisive(), configuration, foreground_channel, *sources])


def rules_hash(plan: Plan, *, mode: str) -> str:
    """Hash of the parts of `plan` that decide the arrays of a case.

    The patch counts only where volumes are padded.
    """
    return _hash(data_rules(plan) | {"patch": plan.patch if mode == "training" else plan.patch[0] == 1})


def data_rules(plan: Plan) -> dict[str, Any]:
    """The parts of `plan` that decide the arrays of a case, but for their padding to the patch.

    Dataset statistics count only for the normalisers that use them: a new MR case then leaves the others
    valid.
    """
    statistics = [
        stats if NORMALISERS[name].uses_dataset_statistics else None
        for name, stats in zip(plan.normalisers, plan.intensity, strict=True)
    ]
    rules = {
        "axis_order": plan.axis_order,
        "spacing_mm": plan.spacing_mm,
        "normalisers": plan.normalisers,
        "uses_mask": plan.uses_mask,
        "statistics": statistics,
        "preset": plan.preset,
        "foreground_channel": plan.foreground_channel,
        "ignore_label": plan.ignore_label,
    }
    # Left out where it is the usual one, so that the hash is the one of programs that knew no other.
    return rules if plan.resampling == CUBIC else rules | {"resampling": plan.resampling}


def volume_differences(plan: Plan, other: Plan) -> tuple[str, ...]:
    """What of two plans would give other volumes; none, and both can be trained on the same ones.

    The padding to the patch does not count: a loader pads what is smaller than a patch.
    """
    own, others = data_rules(plan), data_rules(other)
    own["patch of one slice"], others["patch of one slice"] = plan.patch[0] == 1, other.patch[0] == 1
    return tuple(sorted(name for name in own | others if own.get(name) != others.get(name)))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`; None if there is none, or one of an older program."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_record(Manifest, path)
    except DatasetError:
        return None
    return manifest if manifest.version == FORMAT_VERSION else None


def current_inputs(manifest: Manifest | None, cases: Sequence[RawCase]) -> dict[str, CaseInputs]:
    """By case id, the inputs of the manifest that still describe the files on disk."""
    if manifest is None:
        return {}
    known = {inputs.case_id: inputs for inputs in manifest.cases}
    return {
        case.case_id: known[case.case_id]
        for case in cases
        if case.case_id in known and is_current(known[case.case_id], case)
    }


def outdated_cases(folder: Path, before: Manifest | None, after: Manifest) -> tuple[str, ...]:
    """Cases of `after` that `folder` does not hold in that form: new, changed, or half written."""
    complete = set(complete_case_ids(folder))
    if before is None or (before.mode, before.dtype, before.rules) != (after.mode, after.dtype, after.rules):
        complete = set()
    known = {inputs.case_id: _identity(inputs) for inputs in before.cases} if before else {}
    return tuple(
        inputs.case_id
        for inputs in after.cases
        if inputs.case_id not in complete or known.get(inputs.case_id) != _identity(inputs)
    )


def _identity(inputs: CaseInputs) -> tuple:
    """What must be equal for the arrays to be equal; a file that was only touched has the same content."""
    return inputs.patient_id, inputs.class_target, tuple((f.path, f.sha256) for f in inputs.files)


def start_manifest(folder: Path, after: Manifest, outdated: Iterable[str]) -> None:
    """Delete outdated and vanished cases and the traces of a killed run, then write the new manifest."""
    wanted = {inputs.case_id for inputs in after.cases}
    for case_id in {*outdated, *(set(complete_case_ids(folder)) - wanted)}:
        remove_case(folder, case_id)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    write_json(folder / MANIFEST, after)
