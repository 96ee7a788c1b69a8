"""What is left to do of a cross-validation, from files alone."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet.options import OptimiserOptions, TrainingOptions
from nnunet.training.checkpoint import MODEL_KEY
from scripts.crossval_folds import (
    finished_folds,
    fold_state,
    refuse_other_cases,
    refuse_other_options,
    refuse_other_plan,
)
from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.run_log import RunLog
from utils.splits import Fold, write_folds
from utils.storage import to_plain


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


def save_plan(folder: Path, plan: Plan, sizes: dict[str, Any] | None = None) -> None:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {} if sizes is None else {"Lowered": sizes}
    torch.save({"state_dict": {}, MODEL_KEY: {"plan": to_plain(plan)}, "callbacks": callbacks}, path)


def test_a_fold_of_another_plan_is_told_with_what_differs(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan()
    refuse_other_plan(plan, "--plan default", tmp_path)  # never trained
    save_plan(tmp_path, plan)
    refuse_other_plan(plan, "--plan default", tmp_path)
    intensity = (replace(plan.intensity[0], mean=1.0),)
    other = replace(plan, patch=(4, 16, 32), intensity=intensity)
    with pytest.raises(DatasetError, match=r"is now: patch 4 16 16 \(now 4 16 32\), intensity\. Folds"):
        refuse_other_plan(other, "--plan default", tmp_path)


def test_a_fold_whose_patch_a_dry_step_lowered_has_the_plan_that_it_was_asked_for(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan()
    asked, used = ({"batch_size": 2, "patch": patch} for patch in ([4, 16, 16], [4, 8, 16]))
    save_plan(
        tmp_path, replace(plan, patch=(4, 8, 16), stages=plan.stages[:2]), {"asked": asked, "used": used}
    )
    refuse_other_plan(plan, "--plan default", tmp_path)
    for changed in (replace(plan, patch=(4, 16, 32)), replace(plan, patch=(4, 8, 16))):
        with pytest.raises(DatasetError, match=r"patch 4 16 16 \(now "):
            refuse_other_plan(changed, "--plan default", tmp_path)
    save_plan(
        tmp_path, replace(plan, stages=plan.stages[:2]), {"asked": asked, "used": asked | {"batch_size": 1}}
    )
    with pytest.raises(DatasetError, match=r"is now: stages\."):
        refuse_other_plan(plan, "--plan default", tmp_path)
