"""Patient-wise, class-stratified folds, and splits_final.json that holds them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.contracts import NO_CLASS
from utils.errors import DatasetError
from utils.storage import read_json, write_json

SPLIT_SEED = 12345  # nnU-Net's: without classes and with one case per patient the folds are the same as there
SHOWN = 3  # names quoted in an error before "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Case ids to learn from and case ids to validate on."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_folds(
    case_ids: Sequence[str],
    patient_ids: Sequence[str],
    class_targets: Sequence[int | None],
    *,
    num_folds: int,
    seed: int = SPLIT_SEED,
) -> tuple[Fold, ...]:
    """Folds whose validation parts together hold every case once; no patient is on both sides of a fold.

    The three sequences run in parallel. Where at least two classes are known, every fold gets about the same
    share of each (unknown counts as a class of its own); a class with fewer patients than folds is missing
    from some of them. The order of the cases does not matter.
    """
    if len(set(case_ids)) != len(case_ids):
        raise DatasetError(f"Case {Counter(case_ids).most_common(1)[0][0]} is listed twice.")
    patients = len(set(patient_ids))
    if num_folds < 2 or patients < num_folds:
        raise DatasetError(
            f"{num_folds} folds need at least two folds and as many patients as folds; "
            f"there are {patients} patients ({len(case_ids)} cases). Choose another number of folds."
        )
    order = sorted(range(len(case_ids)), key=lambda index: case_ids[index])
    names = [case_ids[index] for index in order]
    groups = [patient_ids[index] for index in order]
    targets = [NO_CLASS if (known := class_targets[index]) is None else known for index in order]
    return tuple(
        Fold(
            train=tuple(name for i, name in enumerate(names) if i not in held_out),
            val=tuple(names[i] for i in sorted(held_out)),
        )
        for held_out in _validation_parts(groups, targets, num_folds, seed)
    )


def _validation_parts(groups: list[str], targets: list[int], num_folds: int, seed: int) -> list[set[int]]:
    """Indices of the validation cases of each fold, none empty."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold

    indices = np.arange(len(groups))
    most_common = Counter(targets).most_common(1)[0][1]
    if len(set(targets)) > 1 and most_common >= num_folds:
        stratified = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # Rare classes are missing from some folds; the docstring of make_folds says so.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            parts = [set(val.tolist()) for _, val in stratified.split(indices, targets, groups)]
        if all(parts):
            return parts
    if len(set(groups)) == len(groups):
        splits = KFold(num_folds, shuffle=True, random_state=seed).split(indices)
    else:
        splits = GroupKFold(num_folds, shuffle=True, random_state=seed).split(indices, groups=groups)
    return [set(val.tolist()) for _, val in splits]


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write splits_final.json as nnU-Net reads it: a list of {"train": [...], "val": [...]}."""
    write_json(path, folds)


def read_folds(path: Path) -> tuple[Fold, ...]:
    """The folds in `path`; an empty side, a case listed twice or on both sides is an error."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f'{path} should be a list of {{"train": [...], "val": [...]}}, one per fold.')
    return tuple(_read_fold(entry, f"{path}: fold {index}") for index, entry in enumerate(entries))


def _read_fold(entry: object, where: str) -> Fold:
    if not isinstance(entry, dict) or not {"train", "val"} <= set(entry):
        raise DatasetError(f'{where} should have the keys "train" and "val", got {_brief([entry])}.')
    for side in ("train", "val"):
        cases = entry[side]
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise DatasetError(f"{where}: {side} should be a list of case ids, got {cases!r:.80}.")
        if not cases:
            raise DatasetError(
                f"{where}: {side} is empty. Each fold needs cases to train and to validate on."
            )
        if twice := [case for case, count in Counter(cases).items() if count > 1]:
            raise DatasetError(f"{where}: {side} lists {_brief(twice)} more than once.")
    if both := sorted(set(entry["train"]) & set(entry["val"])):
        raise DatasetError(f"{where}: {_brief(both)} in train and in val. A case may be on one side only.")
    return Fold(train=tuple(entry["train"]), val=tuple(entry["val"]))


def pick_fold(folds: Sequence[Fold], fold: int, *, patients: Mapping[str, str], source: Path | str) -> Fold:
    """Fold number `fold`, checked against the cases that exist; `source`: the file or option that made it.

    `patients` maps every known case to its patient. An unknown case, and a patient with cases on both
    sides, are errors; known cases that the fold leaves out are not.
    """
    if not 0 <= fold < len(folds):
        raise DatasetError(no_such_fold(source, len(folds), fold))
    chosen = folds[fold]
    if unknown := sorted({*chosen.train, *chosen.val} - set(patients)):
        raise DatasetError(
            f"{source}: fold {fold} lists cases that the dataset does not have: {_brief(unknown)}. "
            "Correct the file, or preprocess these cases."
        )
    sides = ({patients[case] for case in side} for side in (chosen.train, chosen.val))
    if both := sorted(set.intersection(*sides)):
        raise DatasetError(
            f"{source}: fold {fold} has cases of patient {_brief(both)} in train and in val; "
            "the validation score would be too good. Keep each patient on one side."
        )
    return chosen


def no_such_fold(source: Path | str, num_folds: int, fold: int) -> str:
    """The sentence for a `fold` that the file or option `source` does not have."""
    present = "only fold 0" if num_folds == 1 else f"the folds 0 to {num_folds - 1}"
    return f"{source} has {present}, not fold {fold}."


def _brief(names: Sequence[object]) -> str:
    shown = ", ".join(f"{name!s:.80}" for name in names[:SHOWN])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > SHOWN else shown
