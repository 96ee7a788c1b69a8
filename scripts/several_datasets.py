"""Several datasets or configurations in one command, one after the other; what failed is named at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data_preprocessing.planners import check_options
from data_preprocessing.planning import NoConfigurationError
from scripts.configurations import asked_configurations
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
    """The folders that `prepare` makes of one configuration each, one dataset after the other.

    A single dataset fails as it does alone. Of several, one that fails is reported at once and the others go
    on; SomeFailedError names the failed ones at the end. What no configuration can have is refused before the
    first one.
    """
    tasks = tasks_of(options)
    wanted = _each_configuration(options)
    if len(tasks) == 1:
        return _prepare_configurations([replace(one, task=tasks[0]) for one in wanted], prepare)
    folders, failed = [], []
    for number, task in enumerate(tasks, start=1):
        say(f"Dataset {task}, {number} of {len(tasks)}")
        try:
            folders += _prepare_configurations([replace(one, task=task) for one in wanted], prepare)
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


def _each_configuration(options: PreprocessOptions) -> list[PreprocessOptions]:
    """The options once for every configuration that is asked for; UserError where one cannot have them."""
    names = asked_configurations(options)
    if len(names) == 1:
        return [options]
    if options.plan_from is not None:
        raise UserError(
            f"--plan_from {options.plan_from} is the plan of one configuration, got {', '.join(names)}. Run "
            "preprocess.py once for each."
        )
    for name in names:
        check_options(options.planner, name)
    return [replace(options, configuration=(name,), dim=None, lowres=False) for name in names]


def _prepare_configurations(
    wanted: Sequence[PreprocessOptions], prepare: Callable[[PreprocessOptions], Path]
) -> tuple[Path, ...]:
    """The folders of one dataset; of several configurations, one that it does not have is told and left out.

    NoConfigurationError where none is left.
    """
    if len(wanted) == 1:
        return (prepare(wanted[0]),)
    folders: list[Path] = []
    reasons: list[NoConfigurationError] = []
    for options in wanted:
        try:
            folders.append(prepare(options))
        except NoConfigurationError as reason:
            reasons.append(reason)
            say(f"{' '.join(options.configuration)} is left out. {reason}")
    if not folders:
        raise reasons[-1]
    return tuple(folders)
