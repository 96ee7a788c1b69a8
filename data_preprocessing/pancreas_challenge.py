"""The folders of the pancreas challenge, split/subtypeN/quiz_N_XXX[_0000].nii.gz, read as cases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.case_files import CHANNEL_SUFFIX, NIFTI_ENDINGS, is_junk, split_ending
from data_preprocessing.faults import DatasetFaults, errors_of, make_fault
from utils.errors import Fault

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SUBTYPE_FOLDER = re.compile(r"subtype(\d+)")
SUBTYPE_IN_NAME = re.compile(r"quiz_(\d+)_\d+")
IMAGE_CHANNEL = "0000"  # a CT has one


@dataclass(frozen=True, kw_only=True)
class ChallengeFile:
    """One image or mask; `subtype` is None in the test folder."""

    path: Path
    case_id: str
    is_image: bool
    subtype: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChallengeCase:
    """One case of the challenge; a test case has neither mask nor subtype."""

    case_id: str
    split: str
    image: Path
    label: Path | None = None
    subtype: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChallengeReading:
    """All cases, by split and name, and warnings about what else lies in the folders."""

    cases: tuple[ChallengeCase, ...]
    remarks: tuple[Fault, ...] = ()


def has_subtype_folders(folder: Path) -> bool:
    """Whether `folder` is divided into subtype0, subtype1, ..."""
    return any(SUBTYPE_FOLDER.fullmatch(path.name) and path.is_dir() for path in _listed(folder))


def subtype_files(folder: Path, faults: list[Fault]) -> tuple[ChallengeFile, ...]:
    """Images and masks of subtype0, subtype1, ...; a name that tells another subtype is a fault."""
    files: list[ChallengeFile] = []
    for place in _listed(folder):
        match = SUBTYPE_FOLDER.fullmatch(place.name)
        if match is None or not place.is_dir():
            what = "this is no folder subtypeN and is left out."
            faults.append(make_fault("W101", place, what, "move it away, or rename the folder."))
            continue
        for file in _files_in(place, int(match[1]), faults):
            named = SUBTYPE_IN_NAME.fullmatch(file.case_id)
            if named and int(named[1]) != file.subtype:
                what = f"the name tells subtype {named[1]}, the folder {place.name}."
                fix = "move the file into the right folder, or rename it."
                faults.append(make_fault("E123", file.path, what, fix, file.case_id))
            files.append(file)
    return tuple(files)


def read_challenge(root: Path) -> ChallengeReading:
    """All cases below `root`, by split and name; no image is opened.

    Needs `train`; `validation` and `test` may be absent. Raises DatasetFaults with every image without its
    mask, every mask without its image, every case that occurs twice and every wrong subtype.
    """
    faults: list[Fault] = []
    cases: list[ChallengeCase] = []
    for split in (TRAIN, VALIDATION):
        if (root / split).is_dir():
            cases += _labelled(split, subtype_files(root / split, faults), faults)
    if (root / TEST).is_dir():
        cases += _unlabelled(_files_in(root / TEST, None, faults), faults)
    if not any(case.split == TRAIN for case in cases) and not errors_of(faults):
        what = "no training case was found."
        fix = "give the folder that holds train/subtype0/quiz_0_001_0000.nii.gz and so on."
        faults.append(make_fault("E113", root / TRAIN, what, fix))
    faults += _doubled(cases)
    if errors := errors_of(faults):
        raise DatasetFaults(errors)
    return ChallengeReading(cases=tuple(cases), remarks=tuple(faults))


def _labelled(split: str, files: Sequence[ChallengeFile], faults: list[Fault]) -> list[ChallengeCase]:
    by_case: dict[tuple[int | None, str], dict[bool, ChallengeFile]] = defaultdict(dict)
    for file in files:
        pair = by_case[file.subtype, file.case_id]
        if file.is_image in pair:
            what = f"the case has a second file of this kind: {pair[file.is_image].path.name}."
            faults.append(make_fault("E108", file.path, what, "remove one of the two.", file.case_id))
        pair[file.is_image] = file
    cases = []
    for (subtype, case_id), pair in sorted(by_case.items(), key=lambda item: item[0][1]):
        image, label = pair.get(True), pair.get(False)
        if image is None or label is None:
            present = image or label
            assert present is not None  # a case exists because of a file
            what = f"the case lacks its {'mask' if image else 'image'}."
            faults.append(make_fault("E109", present.path, what, "add it, or remove this file.", case_id))
            continue
        cases.append(
            ChallengeCase(case_id=case_id, split=split, image=image.path, label=label.path, subtype=subtype)
        )
    return cases


def _unlabelled(files: Sequence[ChallengeFile], faults: list[Fault]) -> list[ChallengeCase]:
    cases = []
    for file in files:
        if file.is_image:
            cases.append(ChallengeCase(case_id=file.case_id, split=TEST, image=file.path))
        else:
            fix = f"rename it to {file.case_id}_{IMAGE_CHANNEL}.nii.gz, or remove it."
            what = "a test image lacks the channel number."
            faults.append(make_fault("E111", file.path, what, fix, file.case_id))
    return cases


def _doubled(cases: Sequence[ChallengeCase]) -> list[Fault]:
    first: dict[str, ChallengeCase] = {}
    faults = []
    for case in cases:
        other = first.setdefault(case.case_id, case)
        if other is not case:
            what = f"the case occurs a second time: {other.image}."
            faults.append(
                make_fault("E108", case.image, what, "keep a case in one place only.", case.case_id)
            )
    return faults


def _files_in(folder: Path, subtype: int | None, faults: list[Fault]) -> list[ChallengeFile]:
    files = []
    for path in _listed(folder):
        stem, _ = split_ending(path.name, NIFTI_ENDINGS)
        if not stem or path.is_dir():
            fix = "remove it if it does not belong here."
            faults.append(make_fault("W101", path, "this is no NIfTI file and is left out.", fix))
            continue
        match = CHANNEL_SUFFIX.fullmatch(stem)
        if match and match[2] != IMAGE_CHANNEL:
            what = f"the file is channel {match[2]}, but a case has one channel, {IMAGE_CHANNEL}."
            faults.append(make_fault("E112", path, what, "remove the file, or rename it.", match[1]))
            continue
        files.append(
            ChallengeFile(
                path=path, case_id=match[1] if match else stem, is_image=match is not None, subtype=subtype
            )
        )
    return files


def _listed(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not is_junk(path)] if folder.is_dir() else []
