"""Cases of the pancreas challenge -> both dataset layouts: checked, masks repaired, every file hashed."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_preprocessing.cases import inspect_case
from data_preprocessing.faults import make_fault
from data_preprocessing.integrity import hash_of_content
from data_preprocessing.pancreas_challenge import TEST, TRAIN, VALIDATION, ChallengeCase
from data_preprocessing.volume_io import read_label_volume, read_volume, write_on_grid_of
from utils.contracts import RawCase, Shape, Spacing
from utils.errors import Fault
from utils.splits import Fold, make_folds
from utils.storage import atomic_file, file_hash

Layout = Literal["nnunet", "decathlon"]

LABELS = {"background": 0, "pancreas": 1, "lesion": 2}
ALLOWED_LABELS = frozenset(LABELS.values())
CHANNEL = "CT"
CLASSES_TABLE, LABELS_TABLE, LABELS_OBJECT = "classes.csv", "classification_labels.csv", "classification.json"
ENDING = ".nii.gz"


@dataclass(frozen=True, kw_only=True)
class CaseAudit:
    """What one case holds and what was mended; hashes are SHA-256, shapes and spacings (x, y, z).

    `content_hash` is that of the image's voxels, equal for a copy under another name or compression.
    `repaired_voxels` are those stored near a whole number but not on it, such as 1.0000153.
    """

    case_id: str
    split: str
    subtype: int | None
    image_file: str
    image_hash: str
    content_hash: str
    shape: Shape
    spacing_mm: Spacing
    orientation: str
    label_file: str | None = None
    label_hash: str | None = None
    label_voxels: tuple[int, ...] = ()  # per label value
    repaired_voxels: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseCheckResult:
    """The audit of a case, or the faults that forbid its use."""

    audit: CaseAudit | None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A dataset folder to write, and where the validation cases go."""

    root: Path
    layout: Layout
    validation_apart: bool = False

    def folder(self, case: ChallengeCase) -> str:
        """Tr, Val or Ts: the ending of the folders imagesTr, labelsTr, ..."""
        if case.split == TEST:
            return "Ts"
        return "Val" if case.split == VALIDATION and self.validation_apart else "Tr"

    def image(self, case: ChallengeCase) -> str:
        """Path relative to the folder; nnU-Net numbers the channels, the Decathlon does not."""
        channel = "_0000" if self.layout == "nnunet" else ""
        return f"images{self.folder(case)}/{case.case_id}{channel}{ENDING}"

    def label(self, case: ChallengeCase) -> str:
        """Path relative to the folder."""
        return f"labels{self.folder(case)}/{case.case_id}{ENDING}"


def check_challenge_case(case: ChallengeCase) -> CaseCheckResult:
    """Read one case whole: voxels, geometry of image against mask, label values; nothing is raised."""
    raw = RawCase(case_id=case.case_id, patient_id=case.case_id, images=(case.image,), label=case.label)
    inspection = inspect_case(raw, allowed_labels=ALLOWED_LABELS, num_channels=1)
    loaded = inspection.loaded
    if loaded is None or any(fault.severity == "error" for fault in inspection.faults):
        return CaseCheckResult(audit=None, faults=inspection.faults)
    shape = loaded.image.shape[1:]
    audit = CaseAudit(
        case_id=case.case_id,
        split=case.split,
        subtype=case.subtype,
        image_file=str(case.image),
        image_hash=file_hash(case.image),
        content_hash=hash_of_content(loaded),
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing_mm=loaded.spacing_mm,
        orientation=loaded.orientation,
        label_file=None if case.label is None else str(case.label),
        label_hash=None if case.label is None else file_hash(case.label),
        label_voxels=() if loaded.label is None else _voxels_per_label(loaded.label),
        repaired_voxels=0 if case.label is None else _odd_voxels(case.label),
        remarks=tuple(str(fault) for fault in inspection.faults),
    )
    return CaseCheckResult(audit=audit, faults=inspection.faults)


def copies(audits: Sequence[CaseAudit]) -> tuple[Fault, ...]:
    """Images that occur twice, by content: across splits they would make every score too good."""
    owners: dict[str, list[CaseAudit]] = defaultdict(list)
    for audit in audits:
        owners[audit.content_hash].append(audit)
    return tuple(
        make_fault(
            "E308",
            copy.image_file,
            f"the image ({copy.split}) is the same as that of case {same[0].case_id} ({same[0].split}).",
            "keep one of the two.",
            copy.case_id,
        )
        for same in owners.values()
        for copy in same[1:]
    )


def write_case(case: ChallengeCase, target: Target) -> None:
    """The image byte for byte (compressed if it was not); the mask as uint8 under the affine of its file."""
    image = target.root / target.image(case)
    image.parent.mkdir(parents=True, exist_ok=True)
    if case.image.name.lower().endswith(ENDING):
        shutil.copyfile(case.image, image)
    else:
        image.write_bytes(gzip.compress(case.image.read_bytes(), mtime=0))
    if case.label is None:
        return
    volume = read_label_volume(case.label)
    write_on_grid_of(volume, target.root / target.label(case), volume.voxels)


def description(cases: Sequence[ChallengeCase], target: Target, name: str) -> dict[str, Any]:
    """The content of dataset.json for the layout of `target`."""
    training = [case for case in cases if target.folder(case) == "Tr"]
    test = [case for case in cases if case.split == TEST]
    classification = {
        "name": "subtype",
        "classes": [
            str(value) for value in sorted({case.subtype for case in cases if case.subtype is not None})
        ],
        "source": CLASSES_TABLE,
        "case_column": "case",
        "class_column": "class",
        "missing": "error",
    }
    common = {"name": name, "numTraining": len(training), "classification": classification}
    if target.layout == "nnunet":
        return common | {"channel_names": {"0": CHANNEL}, "labels": LABELS, "file_ending": ENDING}
    return common | {
        "description": "Pancreas and lesion with the lesion's subtype.",
        "tensorImageSize": "3D",
        "modality": {"0": CHANNEL},
        "labels": {str(value): label for label, value in LABELS.items()},
        "numTest": len(test),
        "training": [
            {"image": f"./{target.image(case)}", "label": f"./{target.label(case)}"} for case in training
        ],
        "test": [f"./{target.image(case)}" for case in test],
    }


def folds(cases: Sequence[ChallengeCase], *, validation_apart: bool, train_folds: int) -> tuple[Fold, ...]:
    """The official fold, where validation lies with training, then stratified ones inside training.

    Raises DatasetError where there are fewer training cases than folds.
    """
    training = [case for case in cases if case.split == TRAIN]
    validation = [case for case in cases if case.split == VALIDATION]
    found: list[Fold] = []
    if validation and not validation_apart:
        found.append(Fold(train=_names(training), val=_names(validation)))
    if train_folds:
        names, subtypes = [case.case_id for case in training], [case.subtype for case in training]
        found += make_folds(names, names, subtypes, num_folds=train_folds)
    return tuple(found)


def write_class_tables(folder: Path, cases: Sequence[ChallengeCase]) -> dict[str, int]:
    """Write the subtypes in two of the usual forms and return the third, {case: subtype}, for a JSON file."""
    known = {case.case_id: case.subtype for case in cases if case.subtype is not None}
    _write_table(folder / CLASSES_TABLE, ("case", "class"), known)
    _write_table(folder / LABELS_TABLE, ("Case_id", "Subtype"), known)
    return known


def counts_per_split(cases: Sequence[ChallengeCase]) -> dict[str, dict[str, int]]:
    """Cases of every split, by subtype; those of the test split have none."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        counts[case.split]["unknown" if case.subtype is None else str(case.subtype)] += 1
    return {split: dict(sorted(counter.items())) for split, counter in counts.items()}


def _names(cases: Sequence[ChallengeCase]) -> tuple[str, ...]:
    return tuple(sorted(case.case_id for case in cases))


def _voxels_per_label(label: np.ndarray) -> tuple[int, ...]:
    counts = np.bincount(label.ravel(order="K"), minlength=len(LABELS))
    return tuple(int(count) for count in counts)


def _odd_voxels(path: Path) -> int:
    voxels = read_volume(path).voxels
    return int((voxels != np.rint(voxels)).sum())


def _write_table(path: Path, header: tuple[str, str], classes: dict[str, int]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(sorted(classes.items()))
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())
