"""Which files make up which case: listed in dataset.json, or found by their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preprocessing.faults import DATASET_WIDE, make_fault
from utils.contracts import RawCase
from utils.errors import Fault

CASE_ID = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,128}")  # ids become file names and HTML text
CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
NIFTI_ENDINGS = (".nii.gz", ".nii")
NATURAL_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")  # one file may hold three channels
SCAN_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".mhd", *NATURAL_ENDINGS)
COMPANIONS = {".raw": (".mhd",), ".zraw": (".mhd",), ".json": (".tif", ".tiff")}  # voxels; spacing
JUNK_NAMES = {"Thumbs.db", "desktop.ini"}
MAX_LISTED = 5  # file names that a message lists


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """Where a dataset lies and what its files are called."""

    root: Path
    num_channels: int
    file_ending: str = NIFTI_ENDINGS[0]
    allow_external: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        """Both NIfTI endings are as good as either."""
        return NIFTI_ENDINGS if self.file_ending in NIFTI_ENDINGS else (self.file_ending,)


def split_ending(name: str, endings: Sequence[str]) -> tuple[str, str]:
    """The name without its ending, and the ending; ("", "") if it has none of `endings`."""
    for ending in endings:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return "", ""


def is_junk(path: Path) -> bool:
    """What operating systems and editors leave behind: ._x, .DS_Store, Thumbs.db, x~."""
    return path.name.startswith(".") or path.name in JUNK_NAMES or path.name.endswith("~")


def resolve_path(folder: DatasetFolder, text: Any, case_id: str, faults: list[Fault]) -> Path | None:
    """The existing file that dataset.json names; None, with a fault, if it is missing or outside."""
    file = folder.root / "dataset.json"
    if not isinstance(text, str) or not text or "\0" in text:
        what = f"a path should be text, got {text!r}."
        faults.append(make_fault("E103", file, what, "write the path of the file.", case_id))
        return None
    given = Path(os.path.expandvars(text)) if folder.allow_external else Path(text)
    path = folder.root / given
    if not folder.allow_external:
        is_inside = path.resolve().is_relative_to(folder.root.resolve())
        if given.is_absolute() or ".." in given.parts or "$" in text or not is_inside:
            what = f"the path {text!r} leaves the dataset folder."
            fix = "move the file into the folder, or allow external paths with --allow_external."
            faults.append(make_fault("E110", file, what, fix, case_id))
            return None
    if not path.is_file():
        fix = "restore the file, or remove its entry from dataset.json."
        faults.append(
            make_fault("E109", path, "the file is listed in dataset.json but missing.", fix, case_id)
        )
        return None
    return path


def listed_cases(folder: DatasetFolder, entries: Any, faults: list[Fault]) -> list[RawCase]:
    """Cases of an MSD list: {"image": ..., "label": ...} or a path; a list of images has one per channel."""
    if not isinstance(entries, list):
        what = f"the list of cases is a {type(entries).__name__}."
        file = folder.root / "dataset.json"
        faults.append(make_fault("E103", file, what, 'write [{"image": ..., "label": ...}, ...].'))
        return []
    cases = [_listed_case(folder, entry, faults) for entry in entries]
    return [case for case in cases if case is not None]


def _listed_case(folder: DatasetFolder, entry: Any, faults: list[Fault]) -> RawCase | None:
    fields = entry if isinstance(entry, dict) else {"image": entry}
    images = fields.get("image")
    images = images if isinstance(images, list) else [images]
    name = Path(images[0]).name if images and isinstance(images[0], str) else ""
    stem, _ = split_ending(name, (*folder.endings, *SCAN_ENDINGS))
    match = CHANNEL_SUFFIX.fullmatch(stem)
    case_id = match[1] if match and len(images) > 1 else stem
    return _case_of(folder, case_id or name or DATASET_WIDE, images, fields.get("label"), faults)


def block_cases(folder: DatasetFolder, block: Any, faults: list[Fault]) -> list[RawCase]:
    """Cases of nnU-Net's `dataset` block: case -> {"images": [...], "label": ...}, relative to the folder."""
    cases: list[RawCase] = []
    entries = block if isinstance(block, dict) else {}
    for case_id, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if isinstance(images, list) and images:
            case = _case_of(folder, case_id, images, entry.get("label"), faults)
            cases.extend([case] if case else [])
        else:
            what = f'the entry should be {{"images": [...], "label": ...}}, got {entry!r:.80}.'
            fix = "name one image file per channel."
            faults.append(make_fault("E103", folder.root / "dataset.json", what, fix, case_id))
    return cases


def _case_of(
    folder: DatasetFolder, case_id: str, images: list[Any], label: Any, faults: list[Fault]
) -> RawCase | None:
    channels = _channel_files(folder, images[0]) if len(images) == 1 else []
    paths = channels or [resolve_path(folder, text, case_id, faults) for text in images]
    label_path = None if label is None else resolve_path(folder, label, case_id, faults)
    found = tuple(path for path in paths if path is not None)
    if len(found) != len(paths):
        return None
    if len(found) not in (1, folder.num_channels):
        what = f"{len(found)} images are listed, the dataset declares {folder.num_channels} channels."
        fix = "list one file per channel, or one file that holds them all."
        faults.append(make_fault("E112", folder.root / "dataset.json", what, fix, case_id))
    return RawCase(case_id=case_id, patient_id=case_id, images=found, label=label_path)


def _channel_files(folder: DatasetFolder, text: Any) -> list[Path]:
    """nnU-Net v1 lists `case.nii.gz` and stores `case_0000.nii.gz`, ...; empty if that is not so."""
    if not isinstance(text, str) or ".." in Path(text).parts or (folder.root / text).is_file():
        return []
    path = folder.root / text
    stem, ending = split_ending(path.name, folder.endings)
    files = [path.with_name(f"{stem}_{index:04d}{ending}") for index in range(folder.num_channels)]
    inside = path.resolve().is_relative_to(folder.root.resolve())
    return files if stem and inside and all(file.is_file() for file in files) else []


def scanned_cases(folder: DatasetFolder, images: str, labels: str, faults: list[Fault]) -> list[RawCase]:
    """Cases found as `images/case_0000.nii.gz`, ..., with `labels/case.nii.gz`.

    Both folders may be divided into class folders.
    """
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _files_below(folder.root / images):
        stem, _ = split_ending(path.name, folder.endings)
        match = CHANNEL_SUFFIX.fullmatch(stem)
        if not stem:
            what = f"the file does not end with {' or '.join(folder.endings)} and is left out."
            faults.append(
                make_fault("W101", path, what, "remove it, or correct file_ending in dataset.json.")
            )
        elif match is None:
            what = "the file name lacks the channel number."
            fix = f"rename it to {stem}_0000{folder.file_ending}."
            faults.append(make_fault("E111", path, what, fix, stem))
        elif int(match[2]) in groups[match[1]]:
            other = groups[match[1]][int(match[2])]
            what = f"the case has a second file for channel {int(match[2])}: {other}."
            faults.append(make_fault("E108", path, what, "remove one of the two.", match[1]))
        else:
            groups[match[1]][int(match[2])] = path
    for case_id, channels in groups.items():
        faults.extend(_channel_faults(folder, case_id, channels))
    cases = [
        _scanned_case(folder, case_id, channels, folder.root / labels, faults)
        for case_id, channels in groups.items()
    ]
    faults.extend(unlisted_files(folder.root / labels, {case.label for case in cases}))
    return cases


def _channel_faults(folder: DatasetFolder, case_id: str, channels: dict[int, Path]) -> list[Fault]:
    expected = set(range(folder.num_channels))
    is_colour = set(channels) == {0} and folder.file_ending in NATURAL_ENDINGS
    if set(channels) == expected or is_colour:
        return []
    missing = [f"_{index:04d}" for index in sorted(expected - set(channels))]
    surplus = [f"_{index:04d}" for index in sorted(set(channels) - expected)]
    what = (
        f"channels {missing or 'none'} are missing and {surplus or 'none'} are too many; "
        f"the dataset declares {folder.num_channels}."
    )
    fix = "complete the case, or correct channel_names in dataset.json."
    return [make_fault("E112", next(iter(channels.values())), what, fix, case_id)]


def _scanned_case(
    folder: DatasetFolder, case_id: str, channels: dict[int, Path], labels: Path, faults: list[Fault]
) -> RawCase:
    images = tuple(channels[index] for index in sorted(channels))
    class_folder = images[0].parent.name
    places = [
        place / f"{case_id}{end}" for place in (labels, labels / class_folder) for end in folder.endings
    ]
    label = next((path for path in places if path.is_file()), None)
    if label is None and labels.is_dir():
        fix = "add the label, or remove the images of this case."
        faults.append(make_fault("E109", places[0], "the label of this case is missing.", fix, case_id))
    return RawCase(case_id=case_id, patient_id=case_id, images=images, label=label)


def _files_below(folder: Path) -> list[Path]:
    """Files in `folder` and in the folders right below it, sorted, without junk and companions."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_junk(path):
            found.extend(sorted(path.iterdir()) if path.is_dir() else [path])
    return [path for path in found if not is_junk(path) and not path.is_dir() and not _is_companion(path)]


def _is_companion(path: Path) -> bool:
    """Whether another file here needs this one: a .mhd its voxels, a TIFF its spacing."""
    owners = COMPANIONS.get(path.suffix.lower(), ())
    stems = (path.stem, f"{path.stem}_0000")
    return any(path.with_name(stem + ending).is_file() for stem in stems for ending in owners)


def unlisted_files(folder: Path, listed: set[Path | None]) -> list[Fault]:
    """One warning for all files in `folder` that belong to no case."""
    known = {path.resolve() for path in listed if path is not None}
    unlisted = [path.name for path in _files_below(folder) if path.resolve() not in known]
    if not unlisted:
        return []
    more = ", ..." if len(unlisted) > MAX_LISTED else ""
    what = f"{len(unlisted)} files belong to no case: {', '.join(unlisted[:MAX_LISTED])}{more}."
    return [make_fault("W101", folder, what, "list them in dataset.json, or remove them.")]


def id_faults(cases: Sequence[RawCase], file: Path) -> list[Fault]:
    """Ids that cannot become file names, occur twice, or collide where letter case does not count."""
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    for case in cases:
        if not CASE_ID.fullmatch(case.case_id):
            what = f"the case id {case.case_id[:140]!r} is not made of 1 to 128 of A-Z a-z 0-9 . _ - only."
            fix = "rename the files; an id must not start with '.' or '-'."
            faults.append(make_fault("E107", case.images[0], what, fix, case.case_id[:140]))
        folded = case.case_id.casefold()
        if (earlier := seen.get(folded)) is not None:
            is_same = earlier == case.case_id
            what = (
                "the case occurs twice."
                if is_same
                else f"the id differs from {earlier!r} only by letter case."
            )
            faults.append(make_fault("E108", file, what, "remove or rename one of them.", case.case_id))
        seen[folded] = case.case_id
    return faults
