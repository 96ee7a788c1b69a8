"""Every case of a dataset read once, before any hour is spent on it: all faults, one line each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed

from data_preprocessing.cases import LoadedCase, inspect_case, label_values
from data_preprocessing.faults import make_fault
from utils.contracts import Dataset, RawCase
from utils.errors import Fault


@dataclass(frozen=True, kw_only=True)
class CaseCheck:
    """What one case holds; `content_hash` and `labels` are empty where it could not be read."""

    case_id: str
    faults: tuple[Fault, ...]
    content_hash: str = ""  # SHA-256 over the shape and the voxels of the image
    labels: tuple[int, ...] = ()  # label values that occur, ascending


def allowed_label_values(dataset: Dataset) -> frozenset[int]:
    """The values that a label volume of this dataset may hold."""
    values = set(range(len(dataset.label_names)))
    return frozenset(values if dataset.ignore_label is None else values | {dataset.ignore_label})


def check_case(case: RawCase, dataset: Dataset) -> CaseCheck:
    """Read one case and judge it; nothing is raised for bad data."""
    inspection = inspect_case(
        case, allowed_labels=allowed_label_values(dataset), num_channels=len(dataset.channel_names)
    )
    if inspection.loaded is None:
        return CaseCheck(case_id=case.case_id, faults=inspection.faults)
    label = inspection.loaded.label
    return CaseCheck(
        case_id=case.case_id,
        faults=inspection.faults,
        content_hash=hash_of_content(inspection.loaded),
        labels=() if label is None else label_values(label),
    )


def check_dataset(dataset: Dataset, *, num_jobs: int) -> tuple[Fault, ...]:
    """Check every training and test case in `num_jobs` processes, then what only shows across cases.

    Returns errors and warnings, in the order of the cases; nothing stops at the first.
    """
    cases = (*dataset.training, *dataset.test)
    # A worker gets the declarations only: the case lists would be sent along with every single case.
    declared = _without_cases(dataset)
    checks = Parallel(n_jobs=num_jobs)(delayed(check_case)(case, declared) for case in cases)
    found = [check for check in checks if check is not None]
    faults = [fault for check in found for fault in check.faults]
    return (*faults, *faults_across(dataset, found))


def faults_across(dataset: Dataset, checks: Sequence[CaseCheck]) -> tuple[Fault, ...]:
    """What only shows when all cases are known: the same image twice, a label that never occurs."""
    cases = (*dataset.training, *dataset.test)
    return (*_copies(cases, checks), *_absent_labels(dataset, checks))


def _without_cases(dataset: Dataset) -> Dataset:
    return replace(dataset, training=(), test=())


def hash_of_content(case: LoadedCase) -> str:
    """SHA-256 of shape and voxels: equal for the same image under two names."""
    # The transposed view is contiguous, so nothing is copied for the hash.
    voxels = np.ascontiguousarray(case.image.transpose(0, 3, 2, 1))
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def _copies(cases: Sequence[RawCase], checks: Sequence[CaseCheck]) -> list[Fault]:
    """The same image under two ids would sit in training and validation at once."""
    owners: dict[str, list[str]] = defaultdict(list)
    for check in checks:
        if check.content_hash:
            owners[check.content_hash].append(check.case_id)
    files = {case.case_id: case.images[0] for case in cases}
    fix = "remove all but one of them; copies in two folds make every score too good."
    return [
        make_fault("E308", files[copy], f"the image is the same as that of case {ids[0]}.", fix, copy)
        for ids in owners.values()
        for copy in ids[1:]
    ]


def _absent_labels(dataset: Dataset, checks: Sequence[CaseCheck]) -> list[Fault]:
    """Labels that no case holds; silent where no label was read at all."""
    present = {value for check in checks for value in check.labels}
    if not present:
        return []
    absent = [value for value in range(1, len(dataset.label_names)) if value not in present]
    return [
        make_fault(
            "E309",
            dataset.root / "dataset.json",
            f"label {value} ({dataset.label_names[value]}) occurs in none of {len(checks)} cases.",
            "remove it from the labels, or add cases that show it.",
        )
        for value in absent
    ]
