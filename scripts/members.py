"""Which trained models predict together: checkpoints, trainings, the folds of a cross-validation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet.training.trainer import CHECKPOINT_FOLDER, kept_checkpoints
from scripts.environment_defaults import RESULTS
from scripts.model_run import find_checkpoint
from scripts.run_options import RunOptions
from utils.errors import DatasetError, UserError
from utils.prepared_folder import SPLITS
from utils.run_log import say
from utils.splits import read_folds

FOLD_FOLDER = re.compile(r"fold_([0-9]+)")  # in the results of a cross-validation
METRICS_FILE = "final_metrics.json"  # the last file of a finished training, but for the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model: its checkpoint, the results of its training, and its weight in the mean."""

    checkpoint: Path
    results: Path
    weight: float = 1.0

    @property
    def places(self) -> tuple[Path, ...]:
        """Where what belongs to the model may lie: its results, and the folder around its checkpoint."""
        return tuple(dict.fromkeys((self.results.resolve(), results_of(self.checkpoint.resolve()))))


def fold_folder(results: Path, fold: int) -> Path:
    """Where a cross-validation keeps one fold."""
    return results / f"fold_{fold}"


def fold_folders(results: Path) -> dict[int, Path]:
    """The folds of a cross-validation by number, in order; empty for any other folder."""
    found = {
        int(match[1]): path
        for path in results.glob("fold_*")
        if (match := FOLD_FOLDER.fullmatch(path.name)) and path.is_dir()
    }
    return dict(sorted(found.items()))


def find_members(options: RunOptions) -> tuple[Member, ...]:
    """The models of --ckpt_path, of --members, or else of --results.

    Every path of --members counts alike, and so does every fold within a path.
    """
    if options.ckpt_path is not None:
        if options.members or options.folds:
            raise UserError(
                "--ckpt_path is one model; --members and --folds ask for several. To add it to others, give "
                "it as one of --members."
            )
        results = options.results if _is_given(options.results) else results_of(options.ckpt_path)
        return (Member(checkpoint=options.ckpt_path, results=results),)
    if not options.members:
        # The checkpoints may lie elsewhere than the classifiers and the postprocessing of a training.
        return _models_at(options.store, options.folds, own_results=options.results)
    members: list[Member] = []
    for path in options.members:
        models = _models_at(path, options.folds)
        members += [replace(model, weight=1 / len(models)) for model in models]
    return tuple(members)


def _is_given(results: Path) -> bool:
    """Whether --results names a folder, rather than the default or nnU-Net's root of all results."""
    return results not in (RunOptions().results, Path(os.environ.get(RESULTS, "")))


def results_of(checkpoint: Path) -> Path:
    """The results folder that a checkpoint lies in; its own folder where it was moved out of one."""
    folder = checkpoint.parent
    return folder.parent if folder.name == CHECKPOINT_FOLDER else folder


def _models_at(path: Path, folds: Sequence[int], own_results: Path | None = None) -> tuple[Member, ...]:
    if path.is_file():
        if folds:
            raise UserError(f"--folds chooses among the folds of a cross-validation, and {path} is a file.")
        return (Member(checkpoint=path, results=results_of(path)),)
    folders = fold_folders(path)
    if folders and (folds or not kept_checkpoints(path)):
        chosen = _chosen(path, folders, folds)
        return tuple(Member(checkpoint=find_checkpoint(folder), results=folder) for folder in chosen)
    if folds:
        raise UserError(
            f"--folds chooses among the folds of a cross-validation, and {path} has no fold_{folds[0]}."
        )
    return (Member(checkpoint=find_checkpoint(path), results=own_results or path),)


def _chosen(path: Path, folders: dict[int, Path], folds: Sequence[int]) -> list[Path]:
    """The folds asked for, or all that were trained to their end; others are told."""
    if folds:
        if missing := [fold for fold in folds if fold not in folders or not kept_checkpoints(folders[fold])]:
            raise DatasetError(
                f"{fold_folder(path, missing[0])} has no checkpoint, but --folds asks for fold {missing[0]}. "
                f"{_how_to_train(path, missing)}"
            )
        return [folders[fold] for fold in dict.fromkeys(folds)]
    finished = {fold: folder for fold, folder in folders.items() if (folder / METRICS_FILE).is_file()}
    if unfinished := sorted(set(folders) - set(finished)):
        say(f"{path}: fold {', '.join(map(str, unfinished))} is not finished and takes no part.")
    if not finished:
        raise DatasetError(f"{path} has no finished fold. Go on with scripts/crossval.py.")
    return list(finished.values())


def _how_to_train(path: Path, missing: Sequence[int]) -> str:
    """What makes these folds; the dataset of a cross-validation may have fewer."""
    from scripts.training_command import logged_training, training_command  # it knows this file

    if (path / SPLITS).is_file() and max(missing) >= (number := len(read_folds(path / SPLITS))):
        return f"The folds of {path} are 0 to {number - 1}."
    options = logged_training(path)
    if options is None:
        return "Train it with scripts/crossval.py, or leave it away."
    return f"Leave it away, or run: {training_command(options, missing)}"
