"""How far each fold of a cross-validation is, with which options it was trained, and on which cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nnunet.training.checkpoint import changed_fields, read_checkpoint
from nnunet.training.trainer import kept_checkpoints, last_checkpoint
from scripts.members import METRICS_FILE, fold_folder
from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.prepared_folder import SPLITS
from utils.run_log import read_log
from utils.splits import Fold, read_folds
from utils.storage import read_json, to_plain

LONGEST_VALUE = 40  # characters of a plan's field that a message repeats
FoldState = Literal["absent", "interrupted", "finished"]

# Where a fold was trained, how fast, and what it keeps: nothing that it learned from.
INDIFFERENT = frozenset(
    {
        "exec_mode",
        "recipe",  # its values are compared one by one
        "data",
        "task",  # written in several ways; the cases are compared
        "results",
        "overwrite",
        "configuration",  # dim and plan, which are compared
        "fold",
        "folds",
        "folds_at_once",
        "device",
        "affinity",
        "logname",
        "resume_training",
        "num_workers",
        "prefetch",
        "residency",
        "augment_in",
        "compile",
        "profile",
        "npz",
    }
)


def fold_state(folder: Path) -> FoldState:
    """Finished with its final validation, interrupted behind some epoch, or not begun."""
    metrics, last = folder / METRICS_FILE, last_checkpoint(folder)
    # A training that was begun anew in the folder of a finished one leaves newer weights than scores.
    if metrics.is_file() and not (last.is_file() and last.stat().st_mtime > metrics.stat().st_mtime):
        return "finished"
    return "interrupted" if last.is_file() else "absent"


def logged_options(folder: Path, logname: str) -> dict[str, Any] | None:
    """Every option of the fold's latest training by name; None where it left no log."""
    path = folder / logname
    if not path.is_file():
        return None
    lines = [line["data"] for line in read_log(path) if line.get("step") == "PARAMETER"]
    return lines[-1] if lines else None


def refuse_other_options(options: RunOptions, folder: Path) -> None:
    """UserError that names what differs, if the fold in `folder` was trained with other options.

    What an older program did not know to log has its default.
    """
    logged = logged_options(folder, options.logname)
    if logged is None:
        return
    usual, wanted = describe(RunOptions()), describe(options)
    indifferent = INDIFFERENT | ({"ckpt_path"} if logged.get("resume_training") else set())
    changed = [
        f"--{name} {_text(found)} (now {_text(value)})"
        for name, value in wanted.items()
        if name not in indifferent and (found := logged.get(name, usual[name])) != value
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with other options: {', '.join(changed)}. Give the same options, or "
            "another --results."
        )


def refuse_other_plan(plan: Plan, source: str, folder: Path) -> None:
    """DatasetError that names what differs, if the fold in `folder` was trained by another plan than `plan`.

    `source` says where that plan comes from. A batch or patch that a dry step lowered is no difference.
    """
    from scripts.dry_step import plan_asked_for

    kept = kept_checkpoints(folder)
    if not kept:
        return
    stored, now = plan_asked_for(read_checkpoint(kept[-1]), plan), to_plain(plan)
    if changed := [_change(name, stored.get(name), now[name]) for name in changed_fields(Plan, stored, now)]:
        raise DatasetError(
            f"{folder} was trained with another plan than {source} is now: {', '.join(changed)}. Folds of "
            "two plans are not scored together. Bring back the former plan, or give another --results."
        )


def _change(name: str, before: Any, now: Any) -> str:
    """The field with both values, where these are short."""
    texts = [_text(value) for value in (before, now)]
    return name if max(map(len, texts)) > LONGEST_VALUE else f"{name} {texts[0]} (now {texts[1]})"


def refuse_other_cases(folds: Sequence[Fold], fold: int, folder: Path) -> None:
    """DatasetError if the fold in `folder` was trained when its number stood for other cases."""
    path = folder / SPLITS
    if not path.is_file():
        return
    before = read_folds(path)
    sides = [(set(one.train), set(one.val)) for one in (*before[fold : fold + 1], folds[fold])]
    if len(sides) < 2 or sides[0] != sides[1]:
        raise DatasetError(
            f"{path}: fold {fold} has other cases than the dataset's fold {fold} has now. Train into another "
            f"--results, or bring back the {SPLITS} (or --nfolds) of that training."
        )


def finished_folds(results: Path, num_folds: int) -> tuple[int, ...]:
    """Numbers of the folds whose scores and checkpoints are there."""
    return tuple(
        fold
        for fold in range(num_folds)
        if fold_state(folder := fold_folder(results, fold)) == "finished" and kept_checkpoints(folder)
    )


def fold_metrics(results: Path, fold: int) -> dict[str, Any]:
    """The content of a finished fold's final_metrics.json."""
    return read_json(fold_folder(results, fold) / METRICS_FILE)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
