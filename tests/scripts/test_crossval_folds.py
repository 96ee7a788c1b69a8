"""What is left to do of a cross-validation, from files alone."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet.options import OptimiserOptions, TrainingOptions
from scripts.crossval_folds import (
    finished_folds,
    fold_state,
    refuse_other_cases,
    refuse_other_options,
)
from scripts.run_options import RunOptions
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.run_log import RunLog
from utils.splits import Fold, write_folds


def touch(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))


def log_options(folder: Path, options: RunOptions) -> None:
    with RunLog(folder / "logs.json") as log:
        log.log("PARAMETER", describe(options))


def test_a_fold_is_absent_interrupted_or_finished(tmp_path: Path) -> None:
    assert fold_state(tmp_path) == "absent"
    touch(tmp_path / "checkpoints" / "last.ckpt", 100)
    assert fold_state(tmp_path) == "interrupted"
    touch(tmp_path / "final_metrics.json", 200)
    assert fold_state(tmp_path) == "finished"
    touch(tmp_path / "checkpoints" / "last.ckpt", 300)  # begun anew
    assert fold_state(tmp_path) == "interrupted"


def test_scores_without_a_checkpoint_are_no_finished_fold(tmp_path: Path) -> None:
    for fold in (0, 2):
        touch(tmp_path / f"fold_{fold}" / "final_metrics.json", 200)
    touch(tmp_path / "fold_2" / "checkpoints" / "last.ckpt", 100)
    assert finished_folds(tmp_path, 5) == (2,)


def test_other_options_are_told_and_other_places_are_not(tmp_path: Path) -> None:
    options = RunOptions(results=tmp_path, training=TrainingOptions(epochs=3))
    log_options(tmp_path, replace(options, fold=1, data=Path("/elsewhere"), device="cuda"))
    refuse_other_options(options, tmp_path)
    changed = replace(options, optimiser=OptimiserOptions(learning_rate=0.1))
    with pytest.raises(UserError, match=r"other options: --learning_rate unset \(now 0\.1\)\."):
        refuse_other_options(changed, tmp_path)


def test_the_latest_training_counts_and_a_resume_has_no_start(tmp_path: Path) -> None:
    options = RunOptions(training=TrainingOptions(epochs=3), ckpt_path=Path("/start.ckpt"))
    log_options(tmp_path, replace(options, training=TrainingOptions(epochs=2)))
    with pytest.raises(UserError, match=r"--epochs 2 \(now 3\)"):
        refuse_other_options(options, tmp_path)
    resumed = replace(options, ckpt_path=None, training=TrainingOptions(epochs=3, resume_training=True))
    log_options(tmp_path, resumed)
    refuse_other_options(options, tmp_path)
    log_options(tmp_path, replace(options, ckpt_path=None))
    with pytest.raises(UserError, match=r"--ckpt_path unset \(now /start\.ckpt\)"):
        refuse_other_options(options, tmp_path)


def test_a_fold_that_held_out_other_cases_is_refused(tmp_path: Path) -> None:
    folds = (Fold(train=("a", "b"), val=("c",)), Fold(train=("a", "c"), val=("b",)))
    refuse_other_cases(folds, 1, tmp_path)  # never trained
    write_folds(tmp_path / "splits_final.json", folds)
    refuse_other_cases((folds[0], Fold(train=("c", "a"), val=("b",))), 1, tmp_path)
    with pytest.raises(DatasetError, match="fold 1 has other cases"):
        refuse_other_cases((folds[1], folds[0]), 1, tmp_path)
    with pytest.raises(DatasetError, match="fold 2 has other cases"):
        refuse_other_cases((*folds, folds[0]), 2, tmp_path)
