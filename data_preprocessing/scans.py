"""A file or a folder to predict -> the cases in it; a folder may hold DICOM series instead of image files."""

from __future__ import annotations

from pathlib import Path

from data_preprocessing.case_files import (
    CHANNEL_SUFFIX,
    NATURAL_ENDINGS,
    SCAN_ENDINGS,
    id_faults,
    is_junk,
    split_ending,
)
from data_preprocessing.dicom_folders import find_dicom, folder_id, series_ids
from data_preprocessing.faults import DatasetFaults, make_fault
from data_preprocessing.formats.dicom import is_dicom
from utils.contracts import RawCase
from utils.errors import Fault


def read_scans(source: Path, num_channels: int) -> tuple[RawCase, ...]:
    """The cases to predict: one file, or every scan in a folder.

    A case is `name.nii.gz`, or `name_0000.nii.gz`, `name_0001.nii.gz`, ... with one file per channel. Without
    any such file, every DICOM series in the folder and below it is a case. Raises DatasetFaults if there is
    none, if channels are missing, or if two files claim the same case.
    """
    faults: list[Fault] = []
    files = _scan_files(source, num_channels)
    if not files:
        return _dicom_cases(source, num_channels)
    cases: list[RawCase] = []
    for case_id, channels in _scan_groups(files, num_channels, faults).items():
        faults.extend(_scan_channel_faults(case_id, channels, num_channels))
        images = tuple(
            channels[index] for index in sorted(channels, key=lambda index: -1 if index is None else index)
        )
        cases.append(RawCase(case_id=case_id, patient_id=case_id, images=images))
    faults.extend(id_faults(cases, source))
    if faults:
        raise DatasetFaults(faults)
    return tuple(cases)


def _dicom_cases(source: Path, num_channels: int) -> tuple[RawCase, ...]:
    """One case per series of a folder, or the series of one file; an image is named by its first file."""
    if source.is_file() and is_dicom(source):
        named = {folder_id(source.parent, source.parent): source}
    else:
        content = find_dicom(source)
        if not content.images:
            raise DatasetFaults([_nothing_here(source, len(content.masks) + content.others)])
        files = [series.files[0] for series in content.images]
        named = dict(zip(series_ids(content.images, source), files, strict=True))
    if num_channels != 1:
        what = f"the model needs {num_channels} channels, and which DICOM series is which is not known."
        fix = (
            "convert them with scripts/convert_dicom.py and name them case_0000.nii.gz, case_0001.nii.gz, ..."
        )
        raise DatasetFaults([make_fault("E112", source, what, fix)])
    return tuple(
        RawCase(case_id=case_id, patient_id=case_id, images=(file,)) for case_id, file in named.items()
    )


def _nothing_here(source: Path, num_others: int) -> Fault:
    what = "there is no image here." if source.exists() else "the path does not exist."
    if num_others:
        what = f"{num_others} DICOM objects lie here, but no image series."
    endings = ", ".join(SCAN_ENDINGS)
    fix = f"give a file, or a folder of files, that end with {endings}, or a folder of DICOM files."
    return make_fault("E109", source, what, fix)


def _scan_files(source: Path, num_channels: int) -> list[Path]:
    """The image files at `source`; a single file brings along the other channels of its case."""
    if source.is_dir():
        files = [path for path in sorted(source.iterdir()) if path.is_file() and not is_junk(path)]
        return [path for path in files if split_ending(path.name, SCAN_ENDINGS)[0]]
    stem, ending = split_ending(source.name, SCAN_ENDINGS)
    if not stem or not source.exists():
        return []
    match = CHANNEL_SUFFIX.fullmatch(stem)
    if match is None or num_channels == 1:
        return [source]
    siblings = [source.with_name(f"{match[1]}_{index:04d}{ending}") for index in range(num_channels)]
    return [path for path in siblings if path.exists()] or [source]


def _scan_groups(
    files: list[Path], num_channels: int, faults: list[Fault]
) -> dict[str, dict[int | None, Path]]:
    """Case id -> channel -> file; the channel is None for a file without a channel number.

    With one channel, numbers that do not start at _0000 count cases (scan_0001, scan_0002), not channels.
    """
    stems = {path: split_ending(path.name, SCAN_ENDINGS)[0] for path in files}
    numbered = {path: match for path, stem in stems.items() if (match := CHANNEL_SUFFIX.fullmatch(stem))}
    with_first = {match[1] for match in numbered.values() if match[2] == "0000"}
    groups: dict[str, dict[int | None, Path]] = {}
    for path, stem in stems.items():
        match = numbered.get(path)
        is_channel = match is not None and (num_channels > 1 or match[1] in with_first)
        case_id, channel = (match[1], int(match[2])) if match and is_channel else (stem, None)
        channels = groups.setdefault(case_id, {})
        if channel in channels:
            what = f"{channels[channel].name} claims the same case {case_id}."
            faults.append(make_fault("E108", path, what, "keep one of the two files.", case_id))
        channels[channel] = path
    return groups


def _scan_channel_faults(case_id: str, channels: dict[int | None, Path], num_channels: int) -> list[Fault]:
    if set(channels) in ({None}, set(range(num_channels))):
        return []
    first = next(iter(channels.values()))
    if set(channels) == {0} and first.name.lower().endswith(NATURAL_ENDINGS):
        return []
    found = sorted(path.name for path in channels.values())
    what = f"found {found}, but the model needs {num_channels} channel(s), numbered from _0000."
    wanted = ", ".join(f"{case_id}_{index:04d}" for index in range(num_channels))
    return [
        make_fault(
            "E112", first, what, f"provide {wanted}, or one file {case_id} with all channels.", case_id
        )
    ]
