"""The command that fits a classical classifier to a trained checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.command import run_command
from utils.errors import DatasetError, UserError

DESCRIPTION = (
    "Fit the classifier of --fit_classifier on features of a trained network, for --classifier of main.py. "
    "Takes the options of the training: data, task, fold, results."
)


def run(options: RunOptions) -> Path:
    """Fit the classifier from a checkpoint and return its file; UserError where that is impossible."""
    # Imported here: --help must not wait for torch.
    from scripts.classical_fit import NONE, fit_classifier, refuse_impossible_fit
    from scripts.fold_data import read_fold
    from scripts.model_run import find_checkpoint

    if options.training.fit_classifier == NONE:
        raise UserError("--fit_classifier none fits nothing. Choose lda or logistic.")
    fold = read_fold(options)
    refuse_impossible_fit(options, fold.plan)
    if fold.plan.num_classes < 2:
        raise DatasetError(f"{fold.folder}: its plan has no classes, so there is nothing to tell apart.")
    return fit_classifier(options, fold, options.ckpt_path or find_checkpoint(options.store))


def main() -> None:
    """Run from the command line."""
    command = read_command(sys.argv[1:], program="fit_classifier.py", description=DESCRIPTION)
    from scripts.results_folders import own_results

    run(own_results(command))


if __name__ == "__main__":
    sys.exit(run_command(main))
