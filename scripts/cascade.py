"""The story of a cascade: low resolution in all folds, its out-of-fold masks, full resolution on top."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.previous_stage import CONFIGURATION
from scripts.crossval import run as cross_validate
from scripts.crossval_jobs import FoldProcesses, FoldTrainer
from scripts.crossval_words import without, words_for_folds
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.command import run_command
from utils.prepared_folder import CASCADE, DEFAULT_PLAN, LOWRES
from utils.run_log import say

DESCRIPTION = (
    "Train a cascade with the options of main.py: the low resolution is prepared where it is missing, and "
    "trained in all folds into <results>/lowres; with their masks of the held-out cases as further input, "
    "the folds at full resolution (or those of --folds) follow into <results>/cascade. Run it again after an "
    "interruption: what is finished is kept."
)


def run(options: RunOptions, words: Sequence[str], trainer: FoldTrainer) -> Path:
    """Run what is missing of both stages and return the last one's report.

    `words` are what main.py is told beside plan, fold and results. DatasetError where the low resolution is
    missing and cannot be prepared, or where a case is held out by no fold.
    """
    from scripts.cascade_folders import cascade_folders, write_cascade_plan
    from scripts.cascade_masks import open_first_stage, refuse_other_first_stage, write_priors
    from scripts.stage_notes import write_previous_stage

    folders = cascade_folders(options)
    write_cascade_plan(folders)
    lowres, cascade = options.results / LOWRES, options.results / CASCADE
    others = without(words, {"plan", "configuration"})
    say(f"Cascade, stage 1: low resolution, all folds, into {lowres}")
    first = replace(options, plan=LOWRES, results=lowres, folds=())
    cross_validate(first, (*others, "--plan", LOWRES), trainer)
    stage = open_first_stage(first)
    refuse_other_first_stage(cascade, stage.networks)
    write_priors(stage, folders.fine)
    say(f"Cascade, stage 2: full resolution with the masks of stage 1, into {cascade}")
    cascade.mkdir(parents=True, exist_ok=True)
    write_previous_stage(cascade, lowres, stage.networks, options.plan)
    # The plan of full resolution may have volumes of its own, and then the plan of the cascade is theirs.
    second = replace(options, data=folders.fine, plan=CASCADE, results=cascade)
    others = (*without(others, {"data"}), "--data", str(folders.fine))
    return cross_validate(second, (*others, "--plan", CASCADE), trainer)


def _without_configuration(options: RunOptions) -> RunOptions:
    """The options by --dim and --plan alone; 3d_cascade_fullres says what is trained anyway."""
    is_whole = options.configuration == CONFIGURATION and options.plan == CASCADE
    return replace(options, configuration=None, plan=DEFAULT_PLAN if is_whole else options.plan)


def main() -> None:
    """Run from the command line."""
    words = sys.argv[1:]
    command = read_command(words, program="cascade.py", description=DESCRIPTION)
    from scripts.results_folders import own_results  # behind --help: it waits for torch

    command = replace(command, options=_without_configuration(command.options))
    run(own_results(command, per_fold=False), words_for_folds(words), FoldProcesses())


if __name__ == "__main__":
    sys.exit(run_command(main))
