"""BraTS's folders -> a dataset of the Decathlon layout; predicted masks -> BraTS's label values."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.brats_phantom import BratsPhantomOptions
from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.prepared_folder import DATASET
from utils.ranges import check_jobs
from utils.run_log import progress, say

DESCRIPTION = (
    "Make a dataset folder of BraTS's patients (until 2021: <id>_flair, _t1, _t1ce, _t2 and _seg.nii.gz in a "
    "folder <id>), or give predicted masks BraTS's label values."
)
DATASET_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What is converted, from where to where."""

    exec_mode: Literal["dataset", "masks", "phantom"] = "dataset"
    """dataset: the patients of --src_dir and --test_dir become one below --data, labels 0, 1, 2, 4 as 0 to 3.
    masks: the masks of --src_dir go to --results with labels 0 to 3 as 0, 1, 2, 4. phantom: made-up patients
    are drawn into --src_dir and --test_dir."""
    src_dir: Path
    """Folder of the patients with masks, one folder each; or of the predicted masks."""
    test_dir: Path | None = None
    """Folder of patients to be predicted only; their masks, if any, are not read."""
    data: Path = Path("/data")
    """Folder that will hold the dataset's folder."""
    task: str = "11"
    """Number of the dataset."""
    name: str = "BraTS2021_train"
    """Name of the dataset; with this name and task 11, preprocess.py --preset nvidia knows it."""
    results: Path | None = None
    """Folder for the masks with BraTS's values."""
    n_jobs: int = -1
    """Patients or masks that are converted at the same time; -1 is one per core."""
    phantom: BratsPhantomOptions = field(default_factory=BratsPhantomOptions)


def run(options: ConvertOptions) -> Path:
    """Convert, and return the folder that was written; raises UserError with everything that is wrong."""
    check_jobs(options.n_jobs)
    if options.exec_mode == "phantom":
        return _draw(options)
    if options.exec_mode == "masks":
        return _restore(options)
    return _convert(options)


def _draw(options: ConvertOptions) -> Path:
    from data_preprocessing.brats_phantom import write_brats_phantom

    for folder in (options.src_dir, options.test_dir):
        # Made-up patients must never lie among real ones.
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty. Choose another folder for the phantom, or remove it.")
    write_brats_phantom(options.src_dir, options.test_dir, options.phantom)
    has_test = options.test_dir is not None and options.phantom.num_test > 0
    print(f"Made-up patients in {options.src_dir}{f' and {options.test_dir}' if has_test else ''}")
    return options.src_dir


def _convert(options: ConvertOptions) -> Path:
    from joblib import delayed

    from data_preprocessing import brats
    from data_preprocessing.faults import DatasetFaults, errors_of

    root = _dataset_folder(options)
    training = brats.find_patients(options.src_dir, has_masks=True)
    test = brats.find_patients(options.test_dir, has_masks=False) if options.test_dir else ()
    if twice := sorted({case.case_id for case in training} & {case.case_id for case in test}):
        raise UserError(f"{len(twice)} patients are in both folders, the first is {twice[0]}.")
    # Written last: a folder without it is one whose conversion was interrupted.
    (root / DATASET).unlink(missing_ok=True)
    convert = delayed(partial(brats.convert_patient, root=root))
    jobs = [convert(case, part=part) for part, cases in (("Tr", training), ("Ts", test)) for case in cases]
    faults = [fault for found in _in_parallel(jobs, options.n_jobs, "Converting") for fault in found]
    if errors := errors_of(faults):
        raise DatasetFaults(errors)
    for warning in faults:
        say(str(warning))
    brats.write_description(root, options.name, training, test)
    print(f"{root} is ready: {len(training)} patients for training, {len(test)} to predict.")
    return root


def _dataset_folder(options: ConvertOptions) -> Path:
    if not (options.task.isascii() and options.task.isdecimal()):
        raise UserError(f"--task should be a number, such as 11, got {options.task!r}.")
    if not DATASET_NAME.fullmatch(options.name):
        raise UserError(f"--name should consist of letters, digits, _ and -, got {options.name!r}.")
    return options.data / f"Task{int(options.task):02d}_{options.name}"


def _restore(options: ConvertOptions) -> Path:
    from joblib import delayed

    from data_preprocessing.brats import restore_mask

    if options.results is None or options.results.resolve() == options.src_dir.resolve():
        raise UserError("--exec_mode masks needs --results, a folder other than --src_dir.")
    files = sorted(options.src_dir.glob("*.nii.gz"))
    if not files:
        raise UserError(f"{options.src_dir} holds no .nii.gz file. Give the folder of the predicted masks.")
    restore = delayed(restore_mask)
    jobs = [restore(file, options.results / file.name) for file in files]
    _in_parallel(jobs, options.n_jobs, "Writing")
    print(f"{len(files)} masks with the values 0, 1, 2, 4 in {options.results}")
    return options.results


def _in_parallel(jobs: Sequence[Any], n_jobs: int, label: str) -> list[Any]:
    """The results of joblib's `jobs`, in their order."""
    from joblib import Parallel

    return list(progress(Parallel(n_jobs=n_jobs, return_as="generator")(jobs), total=len(jobs), label=label))


def main() -> None:
    """Parse the command line and run."""
    run(parse(ConvertOptions, sys.argv[1:], program="convert_brats.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
