"""Folders of DICOM files, as archives export them -> image series, masks, and which belong together."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preprocessing.case_files import is_junk
from data_preprocessing.formats.dicom_headers import is_dicom, is_image, read_header

UNFIT_FOR_IDS = re.compile(r"[^A-Za-z0-9._-]+")
MAX_ID = 100  # characters that are kept of a folder's name
MASK_MODALITIES = ("SEG", "RTSTRUCT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomSeries:
    """The files of one series in one folder; `patient` only tells patients apart, it is never written."""

    uid: str
    number: str
    modality: str
    patient: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomContent:
    """What lies below a folder: image series, and the files that hold masks (SEG, RTSTRUCT)."""

    images: tuple[DicomSeries, ...]
    masks: tuple[Path, ...]
    others: int  # objects that are neither, such as reports and doses


def find_dicom(folder: Path) -> DicomContent:
    """Every DICOM file below `folder`, by its header; raises VolumeError for a damaged one."""
    series: dict[tuple[Path, str], DicomSeries] = {}
    masks: list[Path] = []
    others = 0
    for path in _dicom_files(folder):
        header = read_header(path)
        modality = str(header.get("Modality", ""))
        if modality in MASK_MODALITIES:
            masks.append(path)
        elif is_image(header):
            uid = str(header.get("SeriesInstanceUID", ""))
            known = series.get((path.parent, uid))
            series[path.parent, uid] = DicomSeries(
                uid=uid,
                number=str(header.get("SeriesNumber", None) or ""),
                modality=modality,
                patient=str(header.get("PatientID", "")),
                files=(*(known.files if known else ()), path),
            )
        else:
            others += 1
    return DicomContent(images=tuple(series.values()), masks=tuple(masks), others=others)


def series_ids(series: Sequence[DicomSeries], root: Path) -> tuple[str, ...]:
    """A case id for each: the folders below `root`, with the series' number where a folder holds several.

    Names come from folders, never from the patient.
    """
    in_folder = Counter(item.files[0].parent for item in series)
    names = []
    for item in series:
        folder = item.files[0].parent
        name = folder_id(folder, root)
        names.append(f"{name}_s{item.number or 0}" if in_folder[folder] > 1 else name)
    return _made_unique(names)


def folder_id(folder: Path, root: Path) -> str:
    """The folders from `root` to `folder` as a case id; the name of `root` where they are the same."""
    parts = folder.relative_to(root).parts or (root.resolve().name,)
    return UNFIT_FOR_IDS.sub("_", "_".join(parts)).strip("._-")[-MAX_ID:].lstrip("._-") or "scan"


def _made_unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names that occur more than once, letter case aside, get a letter for each."""
    counts = Counter(name.casefold() for name in names)
    seen: dict[str, int] = defaultdict(int)
    unique = []
    for name in names:
        seen[name.casefold()] += 1
        is_alone = counts[name.casefold()] == 1
        unique.append(name if is_alone else f"{name}-{seen[name.casefold()]}")
    return tuple(unique)


def _dicom_files(folder: Path) -> list[Path]:
    """All DICOM files below the folder, sorted; links to folders are not followed."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        paths = (Path(place) / name for name in sorted(names))
        found.extend(path for path in paths if not is_junk(path) and path.is_file() and is_dicom(path))
    return found
