"""Several datasets in one command: each is prepared, and those that failed are named at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from utils.errors import UserError
from utils.run_log import say

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions


class SomeFailedError(UserError):
    """Some of several datasets could not be prepared, each for a reason of its own; ends with status 1."""

    exit_status: ClassVar[int] = 1


def tasks_of(options: PreprocessOptions) -> tuple[str, ...]:
    """The datasets that are asked for, each once; UserError for none."""
    tasks = (options.task,) if isinstance(options.task, str) else tuple(dict.fromkeys(options.task))
    if not tasks:
        raise UserError("--task names no dataset. Give a number, a folder name or a path.")
    return tasks


def prepare_each(
    options: PreprocessOptions, prepare: Callable[[PreprocessOptions], Path]
) -> tuple[Path, ...]:
    """The folders that `prepare` makes, one dataset after the other.

    A single one fails as it does alone. Of several, one that fails is reported at once and the others go on;
    SomeFailedError names the failed ones at the end.
    """
    tasks = tasks_of(options)
    if len(tasks) == 1:
        return (prepare(replace(options, task=tasks[0])),)
    folders, failed = [], []
    for number, task in enumerate(tasks, start=1):
        say(f"Dataset {task}, {number} of {len(tasks)}")
        try:
            folders.append(prepare(replace(options, task=task)))
        except UserError as error:
            failed.append(task)
            say(f"Dataset {task} failed. {error}")
        except Exception as error:  # noqa: BLE001 - a defect shown by one dataset leaves the others alone
            failed.append(task)
            say(f"Dataset {task} failed. {''.join(traceback.format_exception(error)).rstrip()}")
    if failed:
        raise SomeFailedError(
            f"{len(failed)} of {len(tasks)} datasets failed, see above: {', '.join(failed)}. The others are "
            "ready."
        )
    return tuple(folders)
