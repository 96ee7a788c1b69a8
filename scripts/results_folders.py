"""Whose a results folder is: a run's own below nnUNet_results, and no other training's unless it may be."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_preprocessing.dataset import task_code
from nnunet.evaluation.report import REPORT_FILE
from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint
from nnunet.training.trainer import kept_checkpoints
from scripts.crossval_folds import logged_options
from scripts.environment_defaults import RESULTS
from scripts.members import METRICS_FILE, fold_folders
from scripts.named_plans import find_plan
from scripts.run_options import ALL_CASES, RunOptions
from utils.errors import DatasetError, UserError
from utils.prepared_folder import CASCADE, LOWRES
from utils.run_log import say

if TYPE_CHECKING:
    from scripts.fold_data import FoldCases
    from scripts.run_recipes import RunCommand

VALIDATION = "validation"  # of a training's results
UNKNOWN = "unknown"  # a fold's number, but it is another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a results folder holds, or is to hold; what is not on record is None."""

    dataset: str | None
    configuration: str | None
    plan: str | None
    fold: str | None

    def differs(self, other: Training) -> bool:
        """Whether anything that both know is not the same."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return any(one != two for one, two in pairs if one is not None and two is not None)

    def __str__(self) -> str:
        known = {"fold": self.fold, "of": self.dataset, "--plan": self.plan}
        words = " ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        return f"{words} ({self.configuration})"


def own_results(command: RunCommand, *, per_fold: bool = True) -> RunOptions:
    """The options; where nnUNet_results gave --results, these are the run's own folder below it.

    A training has <dataset>/<plan>__<configuration>/fold_N there, a cross-validation or a cascade (`per_fold`
    False) the folder above. A prediction finds either by --task, --dim and --plan, a stage of a cascade by
    its plan's name; DatasetError where there is none.
    """
    options = command.options
    if command.origins.get("results") != f"environment {RESULTS}":
        return options
    if options.exec_mode != "predict":
        from scripts.fold_data import prepared_folder

        plan = find_plan(prepared_folder(options), options.plan).plan
        folder = options.results / plan.dataset / f"{options.plan}__{plan.configuration}"
        return replace(options, results=folder / f"fold_{options.fold}" if per_fold else folder)
    if options.ckpt_path is not None or options.members or _is_results(options.results):
        return options
    folder = _trained(options)
    if options.input is None or options.fold == ALL_CASES:
        folder = folder / f"fold_{options.fold}"
    say(f"{RESULTS}: the models of {folder}")
    return replace(options, results=folder)


def _is_results(folder: Path) -> bool:
    """Whether trainings lie in the folder itself."""
    return bool(kept_checkpoints(folder) or fold_folders(folder))


def _trained(options: RunOptions) -> Path:
    """The folder of the dataset's plan below nnUNet_results, by the names of the folders."""
    there = [path for path in sorted(options.results.glob("*/*")) if path.is_dir()]
    there += [path for name in (LOWRES, CASCADE) for path in sorted(options.results.glob(f"*/*/{name}"))]
    found = [
        path
        for path in there
        if _task(path.relative_to(options.results).parts[0]) == _task(options.task)
        and (path.name == options.plan or path.name.startswith(f"{options.plan}__{options.dim}d"))
    ]
    if len(found) == 1:
        return found[0]
    what = f"--task {options.task} --dim {options.dim} --plan {options.plan}"
    shown = ", ".join(str(path.relative_to(options.results)) for path in found or there) or "nothing"
    count = "several trainings" if found else "no training"
    raise DatasetError(
        f"{options.results} ({RESULTS}) holds {count} of {what}; there is {shown}. "
        "Give the folder as --results."
    )


def _task(name: str) -> int | str:
    """A dataset's number, however it is written, else its name."""
    code = task_code(Path(name))
    return int(code) if code.isdecimal() else code


def refuse_used(options: RunOptions, fold: FoldCases) -> None:
    """UserError where a fresh training would replace the checkpoints of another fold, plan or dataset.

    With --overwrite it may. The same training once more is told, and so is what happens to its files.
    """
    kept = kept_checkpoints(options.store)
    plan = fold.plan
    now = Training(
        dataset=plan.dataset, configuration=plan.configuration, plan=options.plan, fold=str(options.fold)
    )
    folds = [] if kept else [folder.name for folder in fold_folders(options.results).values()]
    if not options.training.save_ckpt or options.overwrite or not (kept or folds):
        return
    if folds:
        what = f"a cross-validation ({', '.join(folds)}), whose scores this run would replace"
    elif (there := _training_in(options, kept[-1], fold)).differs(now):
        what = f"{there}, whose checkpoints this run would replace"
    else:
        return
    raise UserError(
        f"{options.results} holds {what}; asked for is {now}. Give another --results (a cross-validation "
        "keeps fold N in its fold_N), or --overwrite to replace what is there."
    )


def _training_in(options: RunOptions, checkpoint: Path, fold: FoldCases) -> Training:
    """The training of a checkpoint: dataset and configuration by its plan, plan and fold by the log.

    Without a log the fold is another one where the model has seen a case that is held out now.
    """
    card: dict[str, Any] = {}
    with suppress(DatasetError):  # a damaged file may be replaced by the training that it is of
        card = read_checkpoint(checkpoint).get(MODEL_KEY, {})
    plan = card.get("plan", {})
    logged = logged_options(options.results, options.logname) or {}
    held_out = {case.case_id for case in fold.validation}
    seen = UNKNOWN if held_out & set(card.get("training_cases", ())) else None
    return Training(
        dataset=plan.get("dataset"),
        configuration=plan.get("configuration"),
        plan=logged.get("plan"),
        fold=str(logged["fold"]) if "fold" in logged else seen,
    )


def remove_scores(results: Path) -> None:
    """Delete what an earlier training was validated with: it is not this one's."""
    shutil.rmtree(results / VALIDATION, ignore_errors=True)
    for name in (METRICS_FILE, REPORT_FILE):
        (results / name).unlink(missing_ok=True)
