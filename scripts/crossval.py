"""The story of a cross-validation: every fold trained into a folder of its own, then scored together."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.crossval_jobs import FoldJob, FoldProcesses, FoldTrainer, Seats, run_jobs, visible_gpus
from scripts.crossval_words import without, words_for_folds
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from scripts.run_start import refuse_predicting
from utils.command import run_command
from utils.errors import UserError
from utils.prepared_folder import SPLITS
from utils.run_log import RUN_SUMMARY, RunLog, say
from utils.splits import write_folds

if TYPE_CHECKING:
    from scripts.fold_data import FoldCases

DESCRIPTION = (
    "Train all folds, or those of --folds, with the options of main.py, each into <results>/fold_N; then "
    "score all held-out cases together and find the postprocessing that helps. Run it again after an "
    "interruption: finished folds are kept, unfinished ones go on."
)


class FailedFoldsError(UserError):
    """Some folds could not be trained; the command ends with status 1."""

    exit_status = 1


def run(options: RunOptions, words: Sequence[str], trainer: FoldTrainer) -> Path:
    """Train what is not finished, score all that is, and return the report.

    `words` are what main.py is told beside the fold. FailedFoldsError where a fold could not be trained.
    """
    # Imported here: --help must not wait for torch.
    from scripts.crossval_folds import (
        finished_folds,
        refuse_other_cases,
        refuse_other_options,
        refuse_other_plan,
    )
    from scripts.crossval_scores import pool_scores
    from scripts.members import fold_folders

    _refuse_unfit(options)
    cases = _cases_of(options)
    folds = cases.folds
    wanted = _wanted(options, len(folds))
    for fold, folder in fold_folders(options.results).items():
        if fold < len(folds):
            refuse_other_options(options, folder)
            refuse_other_plan(cases.plan, f"--plan {options.plan} of {cases.folder}", folder)
            refuse_other_cases(folds, fold, folder)
    jobs = _jobs(options, wanted, words)
    write_folds(options.results / SPLITS, folds)
    with RunLog(options.results / options.logname) as run_log:
        failed = _train(options, jobs, trainer, run_log)
        if failed:
            raise FailedFoldsError(_told(options, failed))
        return pool_scores(options, finished_folds(options.results, len(folds)), run_log)


def _cases_of(options: RunOptions) -> FoldCases:
    """All folds and their plan; each that is to be trained is checked before the first one starts."""
    first = _fold_cases(options, 0)
    for fold in _wanted(options, len(first.folds)):
        _fold_cases(options, fold)
    return first


def _fold_cases(options: RunOptions, fold: int) -> FoldCases:
    from scripts.fold_data import read_fold

    return read_fold(replace(options, fold=fold))


def _wanted(options: RunOptions, num_folds: int) -> tuple[int, ...]:
    if beyond := [fold for fold in options.folds if not 0 <= fold < num_folds]:
        raise UserError(f"--folds {beyond[0]}: the folds are 0 to {num_folds - 1}.")
    return tuple(sorted(set(options.folds))) or tuple(range(num_folds))


def _refuse_unfit(options: RunOptions) -> None:
    """UserError for options that this program sets by itself, or that leave no checkpoint to go on from."""
    refuse_predicting(options, but="--folds")
    given = {
        "--exec_mode": options.exec_mode != "train",
        "--benchmark": options.benchmark,
        "--fold": options.fold != RunOptions().fold,
        "--overwrite": options.overwrite,
        "--resume_training": options.training.resume_training,
        "--ckpt_store_dir": options.ckpt_store_dir,
        "--no_save_ckpt": not options.training.save_ckpt,
        "--nodes": options.nodes > 1,
    }
    if wrong := [name for name, value in given.items() if value]:
        raise UserError(
            f"{', '.join(wrong)}: not in a cross-validation, which trains every fold (--folds chooses some) "
            "on this machine, keeps its checkpoints in <results>/fold_N and goes on from them by itself."
        )


def _jobs(options: RunOptions, folds: Sequence[int], words: Sequence[str]) -> list[FoldJob]:
    """What is left to train, in the order of the folds; what is not is said."""
    from scripts.crossval_folds import fold_state
    from scripts.members import fold_folder

    jobs = []
    for fold in folds:
        folder = fold_folder(options.results, fold)
        state = fold_state(folder)
        if state == "finished":
            say(f"Fold {fold} is finished: {folder}")
            continue
        own = ["--exec_mode", "train", "--fold", str(fold), "--results", str(folder)]
        given = words
        if state == "interrupted":
            say(f"Fold {fold} goes on from its last checkpoint: {folder}")
            given = without(words, {"ckpt_path"})  # what it started from lies behind it
            own.append("--resume_training")
        jobs.append(FoldJob(fold=fold, words=(*given, *own), folder=folder))
    return jobs


def _train(
    options: RunOptions, jobs: Sequence[FoldJob], trainer: FoldTrainer, run_log: RunLog
) -> dict[FoldJob, int]:
    """Train, with a line for each end; returns the failed ones with their exit status."""
    from scripts.crossval_folds import fold_metrics, fold_state
    from scripts.crossval_scores import fold_line

    seats = Seats.for_gpus(visible_gpus(options.device), options.gpus, options.folds_at_once)
    failed: dict[FoldJob, int] = {}
    for done, (job, status) in enumerate(run_jobs(jobs, seats, trainer), start=1):
        if status or fold_state(job.folder) != "finished":
            failed[job] = status
            say(f"Fold {job.fold} failed with exit status {status} ({done} of {len(jobs)} ended).")
            continue
        metrics = fold_metrics(options.results, job.fold)
        say(f"{fold_line(job.fold, metrics)} ({done} of {len(jobs)} ended).")
        run_log.log(RUN_SUMMARY, {f"fold_{job.fold}/dsc": metrics["dsc_mean"]})
    return failed


def _told(options: RunOptions, failed: dict[FoldJob, int]) -> str:
    lines = [
        f"Fold {job.fold} failed with exit status {status}. What it said: {job.folder / 'output.log'}"
        for job, status in sorted(failed.items(), key=lambda item: item[0].fold)
    ]
    return "\n".join(
        [*lines, f"The other folds of {options.results} are kept. Run the same command again to go on."]
    )


def _leave(number: int, frame: object) -> None:  # noqa: ARG001 - as signal handlers are called
    """End as after an interruption from the keyboard, so that no training goes on without this process."""
    sys.exit(128 + number)


def main() -> None:
    """Run from the command line."""
    signal.signal(signal.SIGTERM, _leave)
    words = sys.argv[1:]
    command = read_command(words, program="crossval.py", description=DESCRIPTION)
    for_folds = words_for_folds(words)
    say(f"Every fold is trained by: python main.py {shlex.join(for_folds)}")
    from scripts.results_folders import own_results

    run(own_results(command, per_fold=False), for_folds, FoldProcesses())


if __name__ == "__main__":
    sys.exit(run_command(main))
