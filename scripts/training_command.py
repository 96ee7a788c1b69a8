"""The command that trains what is missing of a cross-validation, from the options that its folds logged."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from scripts.crossval_folds import logged_options
from scripts.crossval_words import OWN, options_of, words_of
from scripts.members import fold_folders
from scripts.run_options import RunOptions

LOG = "logs.json"


def logged_training(results: Path) -> RunOptions | None:
    """The options that the folds in `results` were trained with; None where none of them left a log.

    They are those of the whole: no fold is chosen.
    """
    for folder in fold_folders(results).values():
        # A log of another name cannot be known; the usual one is in nearly every folder.
        logged = logged_options(folder, LOG)
        if logged is not None:
            values = logged | {"results": str(results), "fold": 0, "folds": []}
            values |= {"resume_training": False, "exec_mode": "train"}
            return options_of(values, str(folder / LOG))
    return None


def training_command(options: RunOptions, folds: Sequence[int]) -> str:
    """The command that trains these folds as the others of `options.results` were."""
    words = words_of(options, but=OWN | {"device"})
    again = ["--results", str(options.results), "--folds", *map(str, folds)]
    return shlex.join(["python", "scripts/crossval.py", *words, *again])
