"""A folder of BraTS patients -> a Decathlon dataset of four channels, and BraTS's label values back again.

BraTS until 2021 delivers a folder per patient with `<id>_flair`, `_t1`, `_t1ce`, `_t2` and `_seg.nii.gz` on
one grid, and marks 1 necrotic core, 2 oedema and 4 enhancing tumour; the value 3 is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.case_files import NIFTI_ENDINGS, id_faults, is_junk
from data_preprocessing.cases import inspect_case
from data_preprocessing.faults import DatasetFaults, VolumeError, errors_of, make_fault
from data_preprocessing.volume_io import read_label_volume, write_on_grid_of
from utils.contracts import RawCase
from utils.errors import Fault
from utils.prepared_folder import DATASET
from utils.storage import write_json

MODALITIES = ("flair", "t1", "t1ce", "t2")  # in the order of the channels
CHANNEL_NAMES = ("FLAIR", "T1", "T1Gd", "T2")
LABEL_NAMES = ("background", "necrotic core", "oedema", "enhancing tumour")
BRATS_VALUES = (0, 1, 2, 4)  # what BraTS writes for the labels 0, 1, 2, 3
LARGEST_WHOLE = 2**24  # float32 holds every whole number up to here


def find_patients(folder: Path, *, has_masks: bool) -> tuple[RawCase, ...]:
    """The patients in `folder`, one per folder in it; with `has_masks` each must have its `_seg` file.

    Raises DatasetFaults with every file that is missing; no file is opened.
    """
    faults: list[Fault] = []
    homes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    homes = [path for path in homes if not is_junk(path)]
    if not homes:
        fix = "give the folder that holds one folder per patient, such as BraTS2021_00000."
        faults.append(make_fault("E113", folder, "there is no folder of a patient here.", fix))
    patients = [_patient_in(home, has_masks, faults) for home in homes]
    faults.extend(id_faults(patients, folder))
    if faults:
        raise DatasetFaults(faults)
    return tuple(patients)


def _patient_in(home: Path, has_masks: bool, faults: list[Fault]) -> RawCase:  # noqa: FBT001
    files = {name: _file_of(home, name, faults) for name in (*MODALITIES, *(["seg"] if has_masks else []))}
    if missing := [name for name, path in files.items() if path is None]:
        what = f"{', '.join(f'{home.name}_{name}.nii.gz' for name in missing)} missing."
        fix = "complete the folder; every patient needs flair, t1, t1ce and t2, and seg for training."
        faults.append(make_fault("E109", home, what, fix, home.name))
    images = tuple(path for name in MODALITIES if (path := files[name]) is not None)
    return RawCase(case_id=home.name, patient_id=home.name, images=images or (home,), label=files.get("seg"))


def _file_of(home: Path, name: str, faults: list[Fault]) -> Path | None:
    paths = [home / f"{home.name}_{name}{ending}" for ending in NIFTI_ENDINGS]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        what = f"{found[1].name} is there as well."
        faults.append(make_fault("E108", found[0], what, "keep one of the two files.", home.name))
    return found[0] if found else None


def convert_patient(patient: RawCase, root: Path, part: str) -> tuple[Fault, ...]:
    """Write imagesTr/<id>.nii.gz (x, y, z, channel) and labelsTr/<id>.nii.gz below `root`.

    `part` is Tr, or Ts for cases to predict. Returns what is wrong or odd with the files; with an error among
    it (another grid, a label value that BraTS does not have, a damaged file, ...) nothing is written.
    """
    inspection = inspect_case(patient, allowed_labels=frozenset(BRATS_VALUES), num_channels=len(MODALITIES))
    loaded = inspection.loaded
    if loaded is not None and not errors_of(inspection.faults):
        image = np.moveaxis(_whole_numbers(loaded.image), 0, -1)
        write_on_grid_of(loaded, root / f"images{part}" / f"{patient.case_id}.nii.gz", image)
        if loaded.label is not None:
            label = from_brats(loaded.label)
            write_on_grid_of(loaded, root / f"labels{part}" / f"{patient.case_id}.nii.gz", label)
    return inspection.faults


def _whole_numbers(image: np.ndarray) -> np.ndarray:
    """The image as int32 where that loses nothing: a scanner's whole numbers then take half the room."""
    is_whole = np.abs(image).max() <= LARGEST_WHOLE and np.array_equal(image, np.rint(image))
    return image.astype(np.int32) if is_whole else image


def write_description(root: Path, name: str, training: Sequence[RawCase], test: Sequence[RawCase]) -> None:
    """dataset.json of the Decathlon: four channels, the labels 0 to 3, and the files of every case."""
    description = {
        "name": name,
        "modality": {str(index): channel for index, channel in enumerate(CHANNEL_NAMES)},
        "labels": {str(index): label for index, label in enumerate(LABEL_NAMES)},
        "numTraining": len(training),
        "training": [
            {"image": f"imagesTr/{case.case_id}.nii.gz", "label": f"labelsTr/{case.case_id}.nii.gz"}
            for case in training
        ],
        "test": [f"imagesTs/{case.case_id}.nii.gz" for case in test],
    }
    write_json(root / DATASET, description)


def from_brats(mask: np.ndarray) -> np.ndarray:
    """BraTS's values 0, 1, 2, 4 as labels 0, 1, 2, 3 (uint8); other values must have been refused before."""
    return np.searchsorted(BRATS_VALUES, mask).astype(np.uint8)


def to_brats(mask: np.ndarray) -> np.ndarray:
    """Labels 0, 1, 2, 3 as BraTS's values 0, 1, 2, 4 (uint8); the inverse of `from_brats`."""
    return np.asarray(BRATS_VALUES, dtype=np.uint8)[mask]


def restore_mask(file: Path, target: Path) -> None:
    """Copy a mask of labels 0 to 3 to `target` with BraTS's values; VolumeError for other values."""
    mask = read_label_volume(file)
    low, high = int(mask.voxels.min()), int(mask.voxels.max())
    if low < 0 or high >= len(BRATS_VALUES):
        what = f"label values run from {low} to {high}; a mask of this dataset holds 0 to 3."
        fix = "give the masks as they were predicted; a mask with the value 4 has BraTS's values already."
        raise VolumeError(make_fault("E304", file, what, fix))
    write_on_grid_of(mask, target, to_brats(mask.voxels))
