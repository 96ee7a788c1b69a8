"""Raw dataset -> preprocessed folder: check, measure, plan, prepare; a rerun redoes only what changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.planners import PlannerOptions
from scripts.configurations import Configuration
from scripts.environment_defaults import RAW_FOLDERS
from scripts.several_datasets import prepare_each, tasks_of
from utils.command import run_command
from utils.errors import DatasetError, UserError
from utils.options import option_layers, origins, parse
from utils.ranges import check_jobs
from utils.run_log import say

if TYPE_CHECKING:
    from data_preprocessing.workers import CaseOutcome

DESCRIPTION = "Turn a raw dataset (Decathlon or nnU-Net v2 layout) into a folder that training reads."


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessOptions:
    """What `preprocess.py` may be told."""

    data: Path = Path("/data")
    """Folder that holds the raw dataset; unset: that of the environment variable nnUNet_raw, where it is
    set."""
    results: Path = Path("/data")
    """Folder for the results, which land in <results>/<task>_<dim>d; unset: that of the environment variable
    nnUNet_preprocessed, where it is set."""
    task: str | tuple[str, ...] = "01"
    """Dataset: its number (4, 010), its folder name, or a path. Several are prepared one after the other; one
    that fails does not stop the others, and the command then ends with status 1."""
    dim: Literal[2, 3] | None = None
    """Dimension of the network: 3 for volumes, 2 for slices; unset: 3, or as --configuration says."""
    configuration: tuple[Configuration, ...] = ()
    """What to prepare, one or several, by nnU-Net's names: 2d, 3d_fullres, 3d_lowres into <task>_2d, _3d and
    _3d_lowres; 3d_cascade_fullres needs the last two. A low resolution that would gain nothing is left out of
    several. Unset: as --dim and --lowres say."""
    exec_mode: Literal["training", "val", "test"] = "training"
    """training: plan, and prepare images with labels. val: the same cases as inference sees them. test: the
    cases without labels. val and test use the plan of training and land in val/ and test/ of its folder."""
    lowres: bool = False
    """Prepare the low-resolution configuration of the cascade, into <results>/<task>_3d_lowres."""
    ohe: bool = False
    """Add an input channel that is 1 where a voxel belongs to the non-zero part of the scan."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number type of the stored images."""
    n_jobs: int = -1
    """Processes that work on cases at the same time; -1: one per core."""
    cluster: str | None = None
    """Address of a Dask scheduler, as tcp://host:8786: its workers check and prepare the cases instead. They
    need this project on their PYTHONPATH, and the same folders under the same names."""
    plan_only: bool = False
    """Check, measure and plan the dataset, and write the plan, which may then be edited; a run without this
    switch prepares the cases by it."""
    plan_name: str | None = field(default=None, metadata={"aliases": ("--plan",)})
    """Name of the plan that is made; unset: that of the planner and, unless it is scipy, of the resampling;
    default is plan.json. Another plan is written as plans/NAME.json where it can be trained on the same
    volumes, else prepared as <task>_<dim>d_NAME; main.py --plan NAME trains it. A file plans/NAME.json
    written by hand may name another plan under "inherits_from" and hold the fields that differ."""
    plan_from: Path | None = None
    """Plan the dataset as another one, for weights that are to be fine-tuned on it: grid, patch, stages and
    normalisation, with the other's intensities, come from this prepared folder, plan file or checkpoint;
    channels, labels and classes are the dataset's. main.py --ckpt_path then starts from the weights."""
    keep_plan: bool = False
    """Keep the plan of the folder although the dataset has changed since."""
    allow_external: bool = False
    """Accept a dataset.json that names files outside the dataset folder."""
    verify_dataset_integrity: bool = False
    """Read and check every training and test case again; without it, those that this run prepares and that
    are new or have another size or time than in the last one."""
    verbose: bool = False
    """Print spacing, patch and intensities of the plan, and shape, spacing, mean, deviation and seconds of
    every case."""
    planner: PlannerOptions = field(default_factory=PlannerOptions)


def run(options: PreprocessOptions) -> Path:
    """Prepare the cases of one dataset and return their folder; raises UserError with all that is wrong."""
    # Imported here, so that --help does not wait for the readers.
    from data_preprocessing.cluster import connected
    from data_preprocessing.workers import prepare_cases
    from scripts import preprocess_plans
    from scripts import preprocess_steps as steps
    from scripts.memory_check import check_preparing
    from scripts.preprocess_words import describe_plan, planned_summary, summary

    check_jobs(options.n_jobs)
    if len(tasks_of(options)) > 1:
        raise UserError(f"One dataset is prepared here, got --task {' '.join(options.task)}.")
    start_s = time.perf_counter()
    work = steps.open_work(options)
    with connected(options.cluster) as cluster, steps.no_empty_folder(work):
        found = steps.survey(work, options, cluster)
        chosen = preprocess_plans.choose(work, found, options)
        if options.exec_mode == "training":
            say(preprocess_plans.chosen_line(chosen, options))
        if options.verbose:
            print(describe_plan(chosen.plan))
        recipe, todo = steps.start_folder(chosen, found, options)
        folder, num_cases = chosen.work.folder, len(work.cases)
        if options.plan_only:
            print(planned_summary(folder, num_cases, len(todo)))
            return folder
        if cluster is None:
            cases = [case for case, _ in todo]
            check_preparing(cases, chosen.plan, found.fingerprint, num_jobs=options.n_jobs)
        outcomes = prepare_cases(todo, recipe, num_jobs=options.n_jobs, cluster=cluster)
    _tell(outcomes, verbose=options.verbose)
    print(summary(folder, num_cases, len(outcomes), time.perf_counter() - start_s))
    return folder


def _tell(outcomes: Sequence[CaseOutcome], *, verbose: bool) -> None:
    """What became of the cases; DatasetError where some failed."""
    for outcome in outcomes:
        if outcome.error:
            say(f"Case {outcome.case_id} failed. {outcome.error}")
        elif verbose:
            print(outcome)
    if failed := [outcome.case_id for outcome in outcomes if outcome.error]:
        raise DatasetError(f"{len(failed)} of {len(outcomes)} cases failed: {failed}. The others are ready.")


def main() -> None:
    """Parse the command line and run."""
    words = sys.argv[1:]
    options = parse(
        PreprocessOptions, words, program="preprocess.py", description=DESCRIPTION, rules=RAW_FOLDERS
    )
    for name, origin in origins(option_layers(PreprocessOptions, words, RAW_FOLDERS)).items():
        if origin.startswith("environment "):
            say(f"Options of {origin}: {name} {getattr(options, name)}")
    prepare_each(options, run)


if __name__ == "__main__":
    sys.exit(run_command(main))
