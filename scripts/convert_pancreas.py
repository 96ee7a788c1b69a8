"""The story of a conversion: folders of the pancreas challenge -> checked -> dataset folders, an audit."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import joblib
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing import pancreas_conversion as conversion
from data_preprocessing.faults import DatasetFaults, errors_of
from data_preprocessing.pancreas_challenge import ChallengeCase, ChallengeReading, read_challenge
from data_preprocessing.pancreas_conversion import CaseAudit, Target
from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.ranges import check_jobs
from utils.run_log import say
from utils.splits import write_folds
from utils.storage import file_hash, write_json

DESCRIPTION = "Turn the folders of the pancreas challenge into datasets of nnU-Net v2 and Decathlon layout."
AUDIT_FILE = "audit.json"
SPLITS_FILE = "splits_final.json"
DECATHLON_FOLDER = "decathlon"  # apart, so that a number names one dataset in each folder
NAME = re.compile(r"[A-Za-z0-9_-]+")
MAX_ID = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Where from, where to, and in which form."""

    src_dir: Path
    """Folder of the challenge: train/subtypeN, validation/subtypeN and test."""
    nnunet_dir: Path = field(metadata={"aliases": ("--nnUNet_dir",)})
    """Folder for the results: DatasetNNN_Name, and decathlon/TaskNNN_Name."""
    dataset_id: int
    """Number of the dataset, 1 to 999."""
    dataset_name: str = "Pancreas"
    """Name behind the number."""
    layout: Literal["nnunet", "decathlon", "both"] = "both"
    """Which dataset folders are written."""
    validation_apart: bool = False
    """Validation cases go to imagesVal and labelsVal, unseen by planning. Otherwise they lie in imagesTr
    and splits_final.json names them."""
    train_folds: int = 0
    """Further folds in splits_final.json, stratified by subtype and inside the training part; 0: none."""
    n_jobs: int = -1
    """Cases read at the same time; -1 is one per core."""


def run(options: ConvertOptions) -> tuple[Path, ...]:
    """Check everything, then write; the folders that were made. Raises UserError and its kinds."""
    check_jobs(options.n_jobs)
    targets = _targets(options)
    reading = read_challenge(options.src_dir)
    say(f"{len(reading.cases)} cases in {options.src_dir}; reading every file")
    audits = _checked(reading.cases, options.n_jobs)
    for target in targets:
        partial = target.root.with_name(f".{target.root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            unfinished = Target(root=partial, layout=target.layout, validation_apart=options.validation_apart)
            _write_dataset(unfinished, reading, audits, options)
            partial.replace(target.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _show(reading, audits, targets)
    return tuple(target.root for target in targets)


def _targets(options: ConvertOptions) -> tuple[Target, ...]:
    """The folders to make; an error where one is there already."""
    if not 1 <= options.dataset_id <= MAX_ID:
        raise UserError(f"--dataset_id is {options.dataset_id}; it should be 1 to {MAX_ID}.")
    if not NAME.fullmatch(options.dataset_name):
        raise UserError(
            f"--dataset_name {options.dataset_name!r} should be made of letters, digits, _ and -."
        )
    if options.train_folds < 0 or options.train_folds == 1:
        raise UserError(f"--train_folds is {options.train_folds}; it should be 0, or at least 2.")
    if not options.src_dir.is_dir():
        raise UserError(f"--src_dir {options.src_dir} is not a folder.")
    name = f"{options.dataset_id:03d}_{options.dataset_name}"
    both = (
        Target(root=options.nnunet_dir / f"Dataset{name}", layout="nnunet"),
        Target(root=options.nnunet_dir / DECATHLON_FOLDER / f"Task{name}", layout="decathlon"),
    )
    targets = tuple(target for target in both if options.layout in (target.layout, "both"))
    for target in targets:
        if target.root.exists():
            raise UserError(f"{target.root} is there already. Remove it, or choose another --dataset_id.")
    return targets


def _checked(cases: Sequence[ChallengeCase], num_jobs: int) -> tuple[CaseAudit, ...]:
    """The audit of every case, or DatasetFaults with all that is wrong with any of them."""
    check = joblib.delayed(conversion.check_challenge_case)
    results = joblib.Parallel(n_jobs=num_jobs)(check(case) for case in cases)
    found = [result for result in results if result is not None]
    audits = tuple(result.audit for result in found if result.audit is not None)
    faults = [fault for result in found for fault in result.faults]
    if errors := errors_of([*faults, *conversion.copies(audits)]):
        raise DatasetFaults(errors)
    return audits


def _write_dataset(
    target: Target, reading: ChallengeReading, audits: Sequence[CaseAudit], options: ConvertOptions
) -> None:
    """Everything of one dataset folder; the audit last, over the files that were written."""
    cases = reading.cases
    write = joblib.delayed(conversion.write_case)
    joblib.Parallel(n_jobs=options.n_jobs)(write(case, target) for case in cases)
    write_json(target.root / "dataset.json", conversion.description(cases, target, options.dataset_name))
    classes = conversion.write_class_tables(target.root, cases)
    write_json(target.root / conversion.LABELS_OBJECT, classes)
    folds = conversion.folds(
        cases, validation_apart=options.validation_apart, train_folds=options.train_folds
    )
    if folds:
        write_folds(target.root / SPLITS_FILE, folds)
    files = sorted(path for path in target.root.rglob("*") if path.is_file())
    audit = {
        "source": str(options.src_dir),
        "counts": conversion.counts_per_split(cases),
        "repaired_masks": sum(audit.repaired_voxels > 0 for audit in audits),
        "repaired_voxels": sum(audit.repaired_voxels for audit in audits),
        "remarks": [str(fault) for fault in reading.remarks],
        "cases": audits,
        "written": {path.relative_to(target.root).as_posix(): file_hash(path) for path in files},
    }
    write_json(target.root / AUDIT_FILE, audit)


def _show(reading: ChallengeReading, audits: Sequence[CaseAudit], targets: Sequence[Target]) -> None:
    """What was converted, on standard output."""
    counts = conversion.counts_per_split(reading.cases)
    subtypes = sorted({name for split in counts.values() for name in split})
    table = Table("split", *(f"subtype {name}" for name in subtypes), "cases", title="Cases")
    for split, of_split in counts.items():
        numbers = [str(of_split.get(name, 0)) for name in subtypes]
        table.add_row(split, *numbers, str(sum(of_split.values())))
    console = Console()
    console.print(table)
    repaired = [audit for audit in audits if audit.repaired_voxels]
    masks = sum(audit.label_file is not None for audit in audits)
    voxels = sum(audit.repaired_voxels for audit in repaired)
    print(f"{len(repaired)} of {masks} masks stored labels near a whole number: {voxels} voxels rounded.")
    for remark in reading.remarks:
        print(remark)
    for target in targets:
        print(f"{target.root} is ready.")


def main() -> None:
    """Parse the command line and run."""
    run(parse(ConvertOptions, sys.argv[1:], program="convert_pancreas.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
