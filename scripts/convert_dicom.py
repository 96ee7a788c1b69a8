"""DICOM series with SEG or RTSTRUCT -> a dataset of NIfTI files; predicted masks -> DICOM-SEG."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.prepared_folder import DATASET
from utils.ranges import check_jobs
from utils.run_log import progress, say
from utils.storage import read_json

DESCRIPTION = (
    "Make a dataset of DICOM series and of the SEG and RTSTRUCT objects that refer to them, or write "
    "predicted masks as DICOM-SEG."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What is converted, from where to where."""

    exec_mode: Literal["dataset", "masks"] = "dataset"
    """dataset: every image series below --src_dir becomes a case of the dataset --out, in imagesTr where a
    SEG or RTSTRUCT refers to it, else in imagesTs. masks: the masks of --masks, predicted from --src_dir,
    become DICOM-SEG objects in --out."""
    src_dir: Path
    """Folder of DICOM files, at any depth."""
    out: Path
    """Folder to make: the dataset, such as Dataset020_Liver; or that of the SEG objects."""
    series: tuple[str, ...] = ()
    """Take only the series of these numbers or SeriesInstanceUIDs."""
    modality: str | None = None
    """Take only series of this modality, such as CT."""
    structures: tuple[str, ...] = ()
    """Names of the structures that become labels 1, 2, ..., in this order; where two overlap, the later one
    counts. Unset: all, by name, and none may overlap."""
    masks: Path | None = None
    """Mode masks: folder of the predicted <case>.nii.gz."""
    names: Path | None = None
    """Mode masks: dataset.json or plan.json with the names of the labels."""
    n_jobs: int = -1
    """Series that are converted at the same time; -1 is one per core."""


def run(options: ConvertOptions) -> Path:
    """Convert, and return the folder that was made; raises UserError with everything that is wrong."""
    from data_preprocessing.dicom_conversion import choose_series
    from data_preprocessing.dicom_folders import find_dicom

    check_jobs(options.n_jobs)
    if not options.src_dir.is_dir():
        raise UserError(f"--src_dir {options.src_dir} is not a folder.")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"--out {options.out} is there already and not empty. Remove it, or choose another.")
    content = find_dicom(options.src_dir)
    cases = choose_series(content, options.src_dir, options.series, options.modality or "")
    say(f"{len(cases)} of {len(content.images)} image series, {len(content.masks)} objects with masks")
    if options.exec_mode == "masks":
        return _write_segs(options, cases)
    return _make_dataset(options, cases, content)


def _make_dataset(options: ConvertOptions, cases: Sequence[Any], content: Any) -> Path:
    from joblib import delayed

    from data_preprocessing.dicom_conversion import (
        convert_case,
        find_structures,
        with_masks,
        write_description,
    )

    cases, strays = with_masks(cases, content)
    for path in strays:
        say(f"{path} refers to no series that was taken; it is left out.")
    training = [case for case in cases if case.masks]
    if not training:
        raise UserError(f"No SEG or RTSTRUCT below {options.src_dir} refers to a series that was taken.")
    structures = find_structures(training, options.structures)
    partial_root = options.out.with_name(f".{options.out.name}.partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    try:
        write_description(partial_root, cases, structures)
        jobs = [delayed(convert_case)(case, structures, partial_root) for case in cases]
        _refuse_faults(_in_parallel(jobs, options.n_jobs))
        if options.out.is_dir():
            options.out.rmdir()
        partial_root.replace(options.out)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    labels = ", ".join(f"{value} {name}" for name, value in structures.values.items())
    print(
        f"{options.out} is ready: {len(training)} cases with masks ({labels}), "
        f"{len(cases) - len(training)} without."
    )
    return options.out


def _write_segs(options: ConvertOptions, cases: Sequence[Any]) -> Path:
    from joblib import delayed

    from data_preprocessing.dicom_conversion import mask_to_seg, missing_masks

    if options.masks is None or options.names is None:
        raise UserError("--exec_mode masks needs --masks FOLDER and --names dataset.json or plan.json.")
    names = label_names(options.names)
    _refuse_faults([missing_masks(cases, options.masks)])
    write = delayed(partial(mask_to_seg, masks=options.masks, results=options.out, names=names))
    _refuse_faults(_in_parallel([write(case) for case in cases], options.n_jobs))
    print(f"{len(cases)} DICOM-SEG objects in {options.out}")
    return options.out


def label_names(path: Path) -> dict[int, str]:
    """Label value -> name, without the background, from a dataset.json (or its folder) or a plan.json."""
    from data_preprocessing.dataset_json import parse_labels
    from data_preprocessing.faults import DatasetFaults, errors_of
    from utils.errors import Fault

    file = path / DATASET if path.is_dir() else path
    stored = read_json(file)
    names = stored.get("label_names") if isinstance(stored, dict) else None
    if not isinstance(names, list):
        faults: list[Fault] = []
        names = list(parse_labels(stored if isinstance(stored, dict) else {}, file, faults).names)
        if errors := errors_of(faults):
            raise DatasetFaults(errors)
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} names no label above the background.")
    return dict(enumerate(names[1:], start=1))


def _refuse_faults(found: Sequence[Sequence[Any]]) -> None:
    """Raise DatasetFaults with all errors; warnings are said."""
    from data_preprocessing.faults import DatasetFaults, errors_of

    faults = [fault for part in found for fault in part]
    if errors := errors_of(faults):
        raise DatasetFaults(errors)
    for warning in faults:
        say(str(warning))


def _in_parallel(jobs: Sequence[Any], n_jobs: int) -> list[Any]:
    from joblib import Parallel

    done = Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
    return list(progress(done, total=len(jobs), label="Converting"))


def main() -> None:
    """Parse the command line and run."""
    run(parse(ConvertOptions, sys.argv[1:], program="convert_dicom.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
