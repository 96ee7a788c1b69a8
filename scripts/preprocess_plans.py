"""Which plan a preprocessing makes under which name, and whether it shares the volumes of plan.json."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_preprocessing.manifest import PlannedBy, read_manifest, volume_differences
from data_preprocessing.plan_check import validate_plan
from scripts.named_plans import name_of
from scripts.preprocess_steps import Findings, Work, choose_plan, new_plan, options_hash, same_data
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.prepared_folder import DEFAULT_PLAN, INHERITS, own_folder, plan_file, read_plan
from utils.run_log import say
from utils.storage import read_json

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is prepared, and where: `plan` is that of the volumes, made with the options of hash `planner`.

    `dtype` is the number type of the images. `named` is a further plan to be written beside it, of which
    `made` tells the options.
    """

    work: Work
    plan: Plan
    planner: str
    dtype: str
    named: Plan | None = None
    made: PlannedBy | None = None


def choose(work: Work, found: Findings, options: PreprocessOptions) -> Choice:
    """The plan of the volumes, and with --plan_name the named one beside it, or in a folder of its own.

    A named plan that asks for the same volumes shares them; where there are none yet, those of the default
    planner are prepared.
    """
    name, made_with = name_of(options), options_hash(work, options)
    own = own_folder(work.base, name)
    if name == DEFAULT_PLAN or options.exec_mode != "training" or work.plan_folder == own:
        plan = choose_plan(work, found, options)
        return Choice(work=work, plan=plan, planner=made_with, dtype=options.dtype)
    base = _base(work, found, options)
    beside = _plan_beside(work, found, options, name)
    work_of_own = replace(work, plan_folder=own, folder=own, before=read_manifest(own))
    if beside is not None:
        plan = beside
    elif plan_file(own).is_file():
        plan = choose_plan(work_of_own, found, options)
    else:
        plan = new_plan(work, found, options)
    if differences := volume_differences(plan, base.plan):
        if beside is None:
            plan_file(work.plan_folder, name).unlink(missing_ok=True)  # of earlier options
        with suppress(OSError):  # what holds anything stays
            work.folder.rmdir()
        say(f"The plan {name} has volumes of its own in {own}: another {', '.join(differences)}.")
        return Choice(work=work_of_own, plan=plan, planner=made_with, dtype=options.dtype)
    say(f"The plan {name} shares the volumes of {work.plan_folder}; train it with --plan {name}.")
    if beside is not None:
        return base
    return replace(base, named=plan, made=PlannedBy(name=name, planner=made_with))


def _plan_beside(work: Work, found: Findings, options: PreprocessOptions, name: str) -> Plan | None:
    """The named plan in the folder where it still holds: written by hand, or made with these options."""
    path = plan_file(work.plan_folder, name)
    if not path.is_file():
        return None
    made_with = None if work.before is None else work.before.planner_of(name)
    is_written = made_with is None or INHERITS in read_json(path)
    is_current = made_with == options_hash(work, options) and same_data(work, found)
    if is_written or is_current or options.keep_plan:
        plan = read_plan(work.plan_folder, name)
        validate_plan(plan)
        say(f"Using the plan in {path}.")
        return plan
    return None


def _base(work: Work, found: Findings, options: PreprocessOptions) -> Choice:
    """plan.json and its volumes as they are; where there are none, the plan of the default planner.

    DatasetError if it was planned for other data: only its own options could say what it becomes.
    """
    path = plan_file(work.plan_folder)
    if not path.is_file():
        usual = replace(
            options.planner,
            planner="default",
            gpu_memory_target_gb=None,
            resampling=None,
            overwrite_target_spacing=None,
            patch_size=None,
        )
        as_usual = replace(options, planner=usual, plan_from=None)
        plan = new_plan(work, found, as_usual)
        return Choice(work=work, plan=plan, planner=options_hash(work, as_usual), dtype=options.dtype)
    if not same_data(work, found) and not options.keep_plan:
        raise DatasetError(
            f"The dataset has changed since {path} was made. Run preprocess.py with the options of that plan "
            "first, or add --keep_plan."
        )
    planner, dtype = ("", options.dtype) if work.before is None else (work.before.planner, work.before.dtype)
    return Choice(work=work, plan=read_plan(work.plan_folder), planner=planner, dtype=dtype)
