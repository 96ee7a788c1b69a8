"""A raw dataset folder (MSD or nnU-Net v2) -> Dataset, with every inconsistency named at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preprocessing.case_files import (
    NIFTI_ENDINGS,
    SCAN_ENDINGS,
    DatasetFolder,
    block_cases,
    id_faults,
    listed_cases,
    scanned_cases,
    unlisted_files,
)
from data_preprocessing.class_table import (
    known_classes,
    read_classes,
    read_patients,
    with_classes,
    with_patients,
)
from data_preprocessing.dataset_json import parse_channels, parse_labels, parse_left_right, read_description
from data_preprocessing.faults import DatasetFaults, errors_of, make_fault
from utils.contracts import Dataset, RawCase
from utils.errors import Fault, UserError

TASK_FOLDER = re.compile(r"(?:Task|Dataset)([0-9]+)_.+")


@dataclass(frozen=True, kw_only=True)
class DatasetReading:
    """A dataset as far as it could be understood, and everything that was found wrong or odd."""

    dataset: Dataset
    faults: tuple[Fault, ...]


def read_dataset(root: Path, *, allow_external: bool = False) -> Dataset:
    """The dataset in the folder `root`; no image is opened.

    With `allow_external`, dataset.json may name files outside the folder. Raises
    DatasetFaults with all errors.
    """
    reading = describe_dataset(root, allow_external=allow_external)
    if errors := errors_of(reading.faults):
        raise DatasetFaults(errors)
    return reading.dataset


def describe_dataset(root: Path, *, allow_external: bool = False) -> DatasetReading:
    """As `read_dataset`, but faults (errors and warnings) are returned, not raised."""
    faults: list[Fault] = []
    file = root / "dataset.json"
    data = read_description(file, faults)
    if not data:
        if not faults:
            faults.append(
                make_fault("E101", file, "the description is empty.", "describe channels and labels.")
            )
        return DatasetReading(dataset=_empty(root), faults=tuple(faults))
    channels = parse_channels(data, file, faults)
    scheme = parse_labels(data, file, faults)
    folder = DatasetFolder(
        root=root,
        num_channels=max(len(channels), 1),
        file_ending=_file_ending(data, file, faults),
        allow_external=allow_external,
    )
    training = _training_cases(folder, data, faults)
    test = _test_cases(folder, data, faults)
    faults.extend(id_faults([*training, *test], file))
    faults.extend(_count_faults(data, training, file, faults))
    classes = read_classes(folder, data, training, faults)
    patients = read_patients(folder, data, faults)
    training = with_patients(with_classes(training, classes, file, faults), patients, file, faults)
    dataset = Dataset(
        name=root.resolve().name,
        root=root,
        channel_names=channels,
        label_names=scheme.names,
        class_names=classes.names,
        class_title=classes.title if classes.names else "",
        training=tuple(sorted(training, key=lambda case: case.case_id)),
        test=tuple(sorted(known_classes(test, classes), key=lambda case: case.case_id)),
        regions=scheme.regions,
        region_names=scheme.region_names,
        regions_class_order=scheme.region_values,
        ignore_label=scheme.ignore_label,
        left_right_pairs=parse_left_right(data, scheme, file, faults),
    )
    return DatasetReading(dataset=dataset, faults=tuple(faults))


def _empty(root: Path) -> Dataset:
    return Dataset(
        name=root.name,
        root=root,
        channel_names=(),
        label_names=(),
        class_names=(),
        class_title="",
        training=(),
        test=(),
    )


def _file_ending(data: dict[str, Any], file: Path, faults: list[Fault]) -> str:
    ending = data.get("file_ending", NIFTI_ENDINGS[0])
    if ending in SCAN_ENDINGS:
        return ending
    what = f"file_ending is {ending!r}, which is no format that can be read."
    faults.append(make_fault("E103", file, what, f"choose one of {', '.join(SCAN_ENDINGS)}."))
    return NIFTI_ENDINGS[0]


def _training_cases(folder: DatasetFolder, data: dict[str, Any], faults: list[Fault]) -> list[RawCase]:
    """By the `dataset` block, by the MSD list, or by the names in imagesTr.

    nnU-Net v2 ignores a `training` list beside `channel_names`, so that list counts with `modality` only.
    """
    if "dataset" in data:
        return block_cases(folder, data["dataset"], faults)
    if "training" in data and "channel_names" not in data:
        cases = listed_cases(folder, data["training"], faults)
        images: set[Path | None] = {path for case in cases for path in case.images}
        faults.extend(unlisted_files(folder.root / "imagesTr", images))
        return cases
    return scanned_cases(folder, "imagesTr", "labelsTr", faults)


def _test_cases(folder: DatasetFolder, data: dict[str, Any], faults: list[Fault]) -> list[RawCase]:
    images = folder.root / "imagesTs"
    if "test" in data:
        if "channel_names" not in data and not images.is_dir() and data["test"]:
            what = "the test images are listed, but the folder is missing; there will be no test cases."
            faults.append(make_fault("W103", images, what, "fetch the test images if they are needed."))
            return []
        return listed_cases(folder, data["test"], faults)
    return scanned_cases(folder, "imagesTs", "labelsTs", faults)


def _count_faults(
    data: dict[str, Any], training: list[RawCase], file: Path, faults: list[Fault]
) -> list[Fault]:
    declared = data.get("numTraining", len(training))
    if not training and not errors_of(faults):
        what = "no training case was found."
        return [make_fault("E113", file, what, "put images into imagesTr, named case_0000.nii.gz.")]
    if declared != len(training):
        what = f"numTraining is {declared!r}, but {len(training)} cases were found; the files count."
        return [make_fault("W102", file, what, "correct numTraining, or look for missing files.")]
    return []


def find_dataset(data: Path, task: str) -> Path:
    """The dataset folder that `task` means: a number ("4", "010"), a folder name below `data`, or a path."""
    for path in (data / task, Path(task)):
        if task and (path / "dataset.json").is_file():
            return path
    folders = _task_folders(data)
    if task.isascii() and task.isdecimal():
        matches = [path for path in folders if int(task_code(path)) == int(task)]
    else:
        matches = [path for path in folders if path.name == task]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"Task {task} is ambiguous in {data}: {[path.name for path in matches]}. "
            "Give the folder name instead."
        )
    present = [path.name for path in folders] or "no folder TaskNN_Name or DatasetNNN_Name"
    raise UserError(
        f"No dataset for task {task!r} in {data}. It has {present}. Give a number, a folder name or a path."
    )


def _task_folders(data: Path) -> list[Path]:
    if not data.is_dir():
        raise UserError(
            f"The data folder {data} does not exist. Pass --data FOLDER, or run download.py first."
        )
    candidates = [*sorted(data.iterdir()), data.resolve()]
    return [path for path in candidates if path.is_dir() and TASK_FOLDER.fullmatch(path.name)]


def task_code(folder: Path) -> str:
    """The number in the folder's name, as written: "Task04_Hippocampus" -> "04"; else the name itself."""
    name = folder.resolve().name
    match = TASK_FOLDER.fullmatch(name)
    return match[1] if match else name
