"""DICOM folders -> a dataset of the nnU-Net layout, and predicted masks -> DICOM-SEG beside their series."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.cases import POSITION_TOLERANCE_MM
from data_preprocessing.dicom_folders import DicomContent, DicomSeries, series_ids
from data_preprocessing.dicom_masks import label_map, series_of_mask, structure_names
from data_preprocessing.faults import VolumeError, make_fault, of_case
from data_preprocessing.formats.dicom import open_files, read_stack
from data_preprocessing.formats.dicom_seg import write_seg
from data_preprocessing.nifti_header import corner_distance_mm
from data_preprocessing.volume import Volume, refuse
from data_preprocessing.volume_io import read_label_volume, write_on_grid_of
from utils.errors import Fault, UserError
from utils.storage import atomic_file, write_json

ENDING = ".nii.gz"
RESERVED_NAMES = ("background", "ignore")
PATIENT_TABLE = "patients.csv"
PATIENT_COLUMNS = ("case", "patient")


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomCase:
    """An image series, its case id, and the objects that hold its masks."""

    case_id: str
    series: DicomSeries
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Structures:
    """The structures that become labels 1, 2, ...; `may_overlap` where the user gave their order."""

    names: tuple[str, ...]
    may_overlap: bool

    @property
    def values(self) -> dict[str, int]:
        """Name -> label value."""
        return {name: value for value, name in enumerate(self.names, start=1)}


def choose_series(content: DicomContent, root: Path, wanted: Sequence[str], modality: str) -> list[DicomCase]:
    """The image series as cases; `wanted` chooses by UID or number, `modality` by that.

    Ids are those of all series: they do not depend on the choice. Raises UserError where none is left.
    """
    ids = series_ids(content.images, root)
    cases = [
        DicomCase(case_id=case_id, series=series)
        for case_id, series in zip(ids, content.images, strict=True)
        if (not wanted or {series.uid, series.number} & set(wanted)) and modality in ("", series.modality)
    ]
    if not cases:
        found = sorted({f"{series.number or series.uid} ({series.modality})" for series in content.images})
        raise UserError(
            f"{root} holds {len(content.images)} DICOM image series, none of them is wanted. "
            f"Found: {', '.join(found[:20]) or 'none'}. Give other values for --series or --modality."
        )
    return cases


def with_masks(cases: Sequence[DicomCase], content: DicomContent) -> tuple[list[DicomCase], tuple[Path, ...]]:
    """The cases with the objects that refer to their series, and the objects that refer to no series here."""
    series = [case.series for case in cases]
    found = {path: series_of_mask(path, series) for path in content.masks}
    attached = [
        DicomCase(
            case_id=case.case_id,
            series=case.series,
            masks=tuple(path for path, owner in found.items() if owner is case.series),
        )
        for case in cases
    ]
    return attached, tuple(path for path, owner in found.items() if owner is None)


def find_structures(cases: Sequence[DicomCase], wanted: Sequence[str]) -> Structures:
    """Those of `wanted`, in that order, else all that occur, by name.

    UserError for one that never occurs or has a name that dataset.json keeps for itself.
    """
    found = sorted({name for case in cases for path in case.masks for name in structure_names(path)})
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"No mask holds {missing}. The structures are {found}.")
    names = tuple(wanted) or tuple(found)
    if reserved := sorted({*RESERVED_NAMES} & {name.casefold() for name in names}):
        raise UserError(f"A structure is called {reserved[0]!r}. Choose the others with --structures.")
    return Structures(names=names, may_overlap=bool(wanted))


def convert_case(case: DicomCase, structures: Structures, root: Path) -> tuple[Fault, ...]:
    """Write imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz, without masks imagesTs alone.

    What is wrong is returned, not raised: other cases go on.
    """
    part = "Tr" if case.masks else "Ts"
    try:
        stack = open_files(case.series.files)
        image = read_stack(stack)
        voxels = _whole_numbers(image.voxels)
        write_on_grid_of(image, root / f"images{part}" / f"{case.case_id}_0000{ENDING}", voxels)
        if case.masks:
            label = label_map(case.masks, stack, structures.values, may_overlap=structures.may_overlap)
            write_on_grid_of(image, root / "labelsTr" / f"{case.case_id}{ENDING}", label)
    except VolumeError as error:
        return of_case(case.case_id, [error.fault])
    return ()


def write_description(root: Path, cases: Sequence[DicomCase], structures: Structures) -> None:
    """dataset.json and the table of patients, numbered: no field of a patient is written."""
    modalities = sorted({case.series.modality for case in cases})
    if len(modalities) > 1:
        raise UserError(f"The series are of the modalities {modalities}. Choose one with --modality.")
    labels = {"background": 0, **structures.values}
    description: dict[str, Any] = {
        "channel_names": {"0": modalities[0]},
        "labels": labels,
        "numTraining": sum(bool(case.masks) for case in cases),
        "file_ending": ENDING,
        "grouping": {
            "source": PATIENT_TABLE,
            "case_column": PATIENT_COLUMNS[0],
            "group_column": PATIENT_COLUMNS[1],
        },
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PATIENT_COLUMNS)
    writer.writerows(_numbered_patients(cases).items())
    with atomic_file(root / PATIENT_TABLE) as stream:
        stream.write(text.getvalue().encode())
    write_json(root / "dataset.json", description)


def mask_to_seg(case: DicomCase, masks: Path, results: Path, names: Mapping[int, str]) -> tuple[Fault, ...]:
    """Write <case>.dcm from the mask <case>.nii.gz, which must lie on the grid of the series."""
    path = masks / f"{case.case_id}{ENDING}"
    try:
        stack = open_files(case.series.files)
        mask = read_label_volume(path)
        _check_grid(mask, path, stack.shape, stack.affine)
        unknown = sorted(set(np.unique(mask.voxels).tolist()) - set(names) - {0})
        if unknown:
            fix = "give the plan.json or dataset.json of the model as --names."
            raise refuse("E304", path, f"the label values {unknown} have no name.", fix)
        listed = [names.get(value, f"label {value}") for value in range(1, max(names) + 1)]
        write_seg(results / f"{case.case_id}.dcm", mask.voxels, stack, listed)
    except VolumeError as error:
        return of_case(case.case_id, [error.fault])
    return ()


def _numbered_patients(cases: Sequence[DicomCase]) -> dict[str, str]:
    """Case id -> patient_0001, ...; a series that names no patient is one of its own."""
    numbers: dict[str, int] = {}
    keys = {case.case_id: case.series.patient or f"\0{case.case_id}" for case in cases}
    return {
        case_id: f"patient_{numbers.setdefault(key, len(numbers) + 1):04d}" for case_id, key in keys.items()
    }


def _whole_numbers(voxels: np.ndarray) -> np.ndarray:
    """As integers where nothing is lost, as in most CT, for half the bytes."""
    whole = voxels.astype(np.int32)
    return whole if np.array_equal(whole, voxels) else voxels


def _check_grid(mask: Volume, path: Path, shape: tuple[int, int, int], affine: np.ndarray) -> None:
    fix = "give the mask that was predicted from this series, in its own grid."
    if mask.voxels.shape != shape:
        what = f"the shape is {mask.voxels.shape}, the series has {shape}."
        raise refuse("E306", path, what, fix)
    distance = corner_distance_mm(mask.affine, affine, shape)
    if distance > POSITION_TOLERANCE_MM:
        what = f"a corner lies {distance:.4g} mm from that of the series."
        raise refuse("E307", path, what, fix)


def missing_masks(cases: Sequence[DicomCase], masks: Path) -> list[Fault]:
    """A fault for every case without its mask."""
    return [
        make_fault("E109", path, "the mask of this case is missing.", "predict it first.", case.case_id)
        for case in cases
        if not (path := masks / f"{case.case_id}{ENDING}").is_file()
    ]
