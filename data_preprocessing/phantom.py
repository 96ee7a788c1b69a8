"""A seeded synthetic pancreas-lesion dataset with three subtypes, in the folders of its challenge.

The folder holds train/subtypeN, validation/subtypeN and test as the challenge delivers them, and beside them
the dataset.json, classes.csv and splits_final.json that let nnU-Net-style readers use these files where they
are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import joblib
import numpy as np

from data_preprocessing.phantom_anatomy import CROP_SIZES, SUBTYPES, PhantomCase, draw_case
from data_preprocessing.volume_io import write_volume
from utils.errors import UserError
from utils.ranges import check_jobs, check_number
from utils.storage import atomic_file, from_plain, read_json, write_json

DATASET_NAME = "Dataset500_PancreasPhantom"
RECIPE_FILE = "phantom.json"  # written last: its presence means that the folder is complete
SUBTYPE_WEIGHTS = (62, 106, 84)  # training cases per subtype of the challenge
CASE_COUNTS = {"tiny": (9, 3, 2), "small": (60, 18, 6), "full": (252, 36, 72)}  # train, validation, test
NOT_QUITE_ONE = np.float32(1.0000152587890625)  # how most of the challenge's masks store label 1
NOT_QUITE_ONE_SHARE = 0.74
SCANNER_CODE = 1  # NIfTI: scanner-based coordinates


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomOptions:
    """Size and seed of the phantom dataset."""

    size: Literal["tiny", "small", "full"] = "small"
    """Crops of about 16x32x32, 32x64x96 or 65x125x190 voxels."""
    num_train: int | None = None
    """Training cases; by size 9, 60 or 252."""
    num_validation: int | None = None
    """Validation cases; by size 3, 18 or 36."""
    num_test: int | None = None
    """Test cases without mask and subtype; by size 2, 6 or 72."""
    seed: int = 0
    """The same seed gives the same files, byte by byte."""
    n_jobs: int = -1
    """Processes that draw cases; -1 is one per core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCase:
    """One case before it is drawn; `number` is unique in the dataset."""

    split: str
    subtype: int
    number: int
    seed: np.random.SeedSequence

    @property
    def case_id(self) -> str:
        """The challenge's name; that of a test case does not tell its subtype."""
        return f"quiz_{self.number:03d}" if self.split == "test" else f"quiz_{self.subtype}_{self.number:03d}"

    @property
    def folder(self) -> str:
        """Relative to the dataset."""
        return "test" if self.split == "test" else f"{self.split}/subtype{self.subtype}"

    @property
    def image(self) -> str:
        """Relative path, also in dataset.json."""
        return f"{self.folder}/{self.case_id}_0000.nii.gz"

    @property
    def label(self) -> str:
        """Relative path, also in dataset.json."""
        return f"{self.folder}/{self.case_id}.nii.gz"


def write_phantom(folder: Path, options: PhantomOptions) -> Path:
    """Write the dataset below `folder` and return its root; a complete one of the same options is kept."""
    options = complete(options)
    check_jobs(options.n_jobs)
    root = folder / DATASET_NAME
    if _is_finished(root, options):
        return root
    cases = plan_cases(options)
    draw = joblib.delayed(_write_case)
    joblib.Parallel(n_jobs=options.n_jobs)(draw(root, case, options.size) for case in cases)
    labelled = [case for case in cases if case.split != "test"]
    _write_classes(root / "classes.csv", labelled)
    write_json(root / "splits_final.json", [_official_fold(labelled)])
    write_json(root / "dataset.json", _description(cases))
    write_json(root / RECIPE_FILE, _recipe(options))
    return root


def complete(options: PhantomOptions) -> PhantomOptions:
    """`options` with the numbers of cases filled in; an error where a subtype would be missing."""
    train, validation, test = CASE_COUNTS[options.size]
    filled = replace(
        options,
        num_train=train if options.num_train is None else options.num_train,
        num_validation=validation if options.num_validation is None else options.num_validation,
        num_test=test if options.num_test is None else options.num_test,
    )
    for name in ("num_train", "num_validation"):
        if getattr(filled, name) < len(SUBTYPES):
            raise UserError(f"--{name} is {getattr(filled, name)}; every subtype needs a case.")
    check_number("num_test", filled.num_test, least=0)
    check_number("seed", filled.seed, least=0)
    return filled


def plan_cases(options: PhantomOptions) -> list[PlannedCase]:
    """Split, subtype, number and seed of every case, by split, then subtype; the numbers have gaps."""
    counts = (
        ("train", options.num_train),
        ("validation", options.num_validation),
        ("test", options.num_test),
    )
    places = [
        (split, subtype)
        for split, count in counts
        for subtype, share in enumerate(subtype_counts(count or 0))
        for _ in range(share)
    ]
    root = np.random.SeedSequence(options.seed)
    numbers = 1 + np.random.default_rng(root).permutation(max(2 * len(places), 99))[: len(places)]
    return [
        PlannedCase(split=split, subtype=subtype, number=int(number), seed=seed)
        for (split, subtype), number, seed in zip(places, numbers, root.spawn(len(places)), strict=True)
    ]


def subtype_counts(total: int) -> tuple[int, ...]:
    """`total` cases at the challenge's ratio 62 : 106 : 84; from three cases on no subtype is empty."""
    counts = [1 if total >= len(SUBTYPE_WEIGHTS) else 0] * len(SUBTYPE_WEIGHTS)
    for _ in range(total - sum(counts)):
        # The next case goes where the ratio is missed most.
        missing = [
            total * weight / sum(SUBTYPE_WEIGHTS) - count
            for weight, count in zip(SUBTYPE_WEIGHTS, counts, strict=True)
        ]
        counts[int(np.argmax(missing))] += 1
    return tuple(counts)


def _recipe(options: PhantomOptions) -> PhantomOptions:
    """What the files depend on: everything but the number of processes."""
    return replace(options, n_jobs=1)


def _is_finished(root: Path, options: PhantomOptions) -> bool:
    if not root.is_dir() or not any(root.iterdir()):
        return False
    recipe = root / RECIPE_FILE
    if recipe.is_file():
        written = from_plain(PhantomOptions, read_json(recipe), source=str(recipe))
        if written == _recipe(options):
            return True
    raise UserError(
        f"{root} holds another or an unfinished dataset. Remove the folder, or choose another one."
    )


def _write_case(root: Path, case: PlannedCase, size: str) -> None:
    random = np.random.default_rng(case.seed)
    drawn = draw_case(random, CROP_SIZES[size], SUBTYPES[case.subtype])
    origin = random.uniform(-200, 200, 3)
    stores_not_quite_one = random.random() < NOT_QUITE_ONE_SHARE
    _write(root / case.image, drawn.image, drawn, origin)
    if case.split != "test":
        label = drawn.label.astype(np.float32)
        if stores_not_quite_one:
            label[label == 1] = NOT_QUITE_ONE
        _write(root / case.label, label, drawn, origin)


def _write(path: Path, voxels: np.ndarray, case: PhantomCase, origin_mm: np.ndarray) -> None:
    """Write `voxels` (z, y, x) as (x, y, z) running to left, posterior and superior, like most CT files."""
    z_mm, y_mm, x_mm = case.spacing_mm
    affine = np.diag([-x_mm, -y_mm, z_mm, 1.0])
    affine[:3, 3] = origin_mm
    write_volume(
        path,
        voxels.transpose(2, 1, 0),
        affine=affine,
        qform_code=SCANNER_CODE,
        sform_code=SCANNER_CODE,
        spacing_mm=(x_mm, y_mm, z_mm),
    )


def _write_classes(path: Path, cases: Sequence[PlannedCase]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("case", "subtype"))
    table.writerows((case.case_id, case.subtype) for case in cases)
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())


def _official_fold(cases: Sequence[PlannedCase]) -> dict[str, list[str]]:
    def names(split: str) -> Iterator[str]:
        return (case.case_id for case in cases if case.split == split)

    return {"train": sorted(names("train")), "val": sorted(names("validation"))}


def _description(cases: Sequence[PlannedCase]) -> dict[str, object]:
    labelled = [case for case in cases if case.split != "test"]
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1, "lesion": 2},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
        "dataset": {case.case_id: {"images": [case.image], "label": case.label} for case in labelled},
        "test": [case.image for case in cases if case.split == "test"],
        "classification": {
            "name": "subtype",
            "classes": [str(subtype) for subtype in range(len(SUBTYPES))],
            "source": "classes.csv",
            "case_column": "case",
            "class_column": "subtype",
            "missing": "error",
        },
    }
