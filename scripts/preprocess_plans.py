"""Which plan a preprocessing makes under which name, and whether it shares the volumes of plan.json."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_preprocessing.manifest import PlannedBy, read_manifest, volume_differences
from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planning import NoConfigurationError
from scripts.configurations import COARSE
from scripts.named_plans import name_of, refuse_foreign
from scripts.preprocess_steps import Findings, Work, choose_plan, new_plan, options_hash, same_data
from scripts.preprocess_words import plan_line, size_text
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.prepared_folder import DEFAULT_PLAN, INHERITS, LOWRES, own_folder, plan_file, read_plan
from utils.run_log import say
from utils.storage import read_json

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is prepared, and where: `plan` is that of the volumes, made with the options of hash `planner`.

    `dtype` is the number type of the images, `asked` the plan that the run was told to make, by its name.
    Where that is a further plan to be written beside it, `made` tells its options.
    """

    work: Work
    plan: Plan
    asked: Plan
    planner: str
    dtype: str
    made: PlannedBy | None = None


def choose(work: Work, found: Findings, options: PreprocessOptions) -> Choice:
    """The plan of the volumes, and with --plan_name the named one beside it, or in a folder of its own.

    A named plan that asks for the same volumes shares them; where there are none yet, those of the default
    planner are prepared. DatasetError where the name stands for another plan with volumes of its own.
    """
    name, made_with = name_of(options), options_hash(work, options)
    own = own_folder(work.base, name)
    if name == DEFAULT_PLAN or options.exec_mode != "training" or work.plan_folder == own:
        plan = choose_plan(work, found, options)
        _tell_replaced(work.plan_folder, DEFAULT_PLAN, plan)
        return Choice(work=work, plan=plan, asked=plan, planner=made_with, dtype=options.dtype)
    base = _base(work, found, options)
    beside = _plan_beside(work, found, options, name)
    work_of_own = replace(work, plan_folder=own, folder=own, before=read_manifest(own))
    if beside is not None:
        plan = beside
    elif plan_file(own).is_file():
        plan = choose_plan(work_of_own, found, options)
    else:
        plan = new_plan(work, found, options)
    if base is None or (differences := volume_differences(plan, base.plan)):
        if beside is None:
            _tell_replaced(work.plan_folder, name, plan)
            plan_file(work.plan_folder, name).unlink(missing_ok=True)  # of earlier options
        _tell_replaced(own, DEFAULT_PLAN, plan)
        with suppress(OSError):  # what holds anything stays
            work.folder.rmdir()
        why = "there is no default one to share" if base is None else f"another {', '.join(differences)}"
        say(f"The plan {name} has volumes of its own in {own}: {why}.")
        return Choice(work=work_of_own, plan=plan, asked=plan, planner=made_with, dtype=options.dtype)
    if plan_file(own).is_file():
        _refuse_second(own, name, plan, base.plan, is_written=beside is not None)
    say(f"The plan {name} shares the volumes of {work.plan_folder}; train it with {_choosing(work, name)}.")
    if beside is not None:
        return replace(base, asked=plan)
    _tell_replaced(work.plan_folder, name, plan)
    return replace(base, asked=plan, made=PlannedBy(name=name, planner=made_with))


def chosen_line(chosen: Choice, options: PreprocessOptions) -> str:
    """The plan of the run in one line; whether a low resolution is missing is seen in the folders beside."""
    name = name_of(options)
    coarse = own_folder(chosen.work.base, LOWRES)
    names = (coarse, own_folder(coarse, name))
    return plan_line(name, chosen.asked, has_low_resolution=any(plan_file(one).is_file() for one in names))


def _choosing(work: Work, name: str) -> str:
    """What main.py has to be told to train a plan that shares the volumes of `work`."""
    return f"--data {work.plan_folder} --plan {name}" if work.configuration == COARSE else f"--plan {name}"


def _refuse_second(own: Path, name: str, plan: Plan, base: Plan, *, is_written: bool) -> None:
    """DatasetError for a plan that would hide another one of its name, which has volumes in `own`.

    That plan itself may move to the shared volumes, and so may one that a person wrote.
    """
    stored = read_plan(own)
    if plan == stored or is_written:
        say(f"Nothing uses the volumes in {own} any more: the plan {name} shares others. Delete them.")
        return
    raise DatasetError(
        f"There is a plan {name} already, with volumes of its own in {own}: another "
        f"{', '.join(volume_differences(stored, base))} than the one asked for. Give this one another name "
        f"(--plan_name), or delete {own}."
    )


def _tell_replaced(folder: Path, name: str, plan: Plan) -> None:
    """One line where `plan` takes the place of another one, of other options or edited by hand."""
    path = plan_file(folder, name)
    if not path.is_file():
        return
    try:
        before = read_plan(folder, name)
    except DatasetError as fault:
        say(f"{path} is replaced, it cannot be read: {fault}")
        return
    changed = [
        field.name for field in fields(plan) if getattr(plan, field.name) != getattr(before, field.name)
    ]
    if not changed:
        return
    others = [entry for entry in changed if entry not in ("patch", "batch_size")]
    told = f"; another {', '.join(others)}" if others else ""
    say(
        f"{path} is replaced: {size_text(before)} -> {size_text(plan)}{told}. To keep both plans, give the "
        "new one another --plan_name."
    )


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
        refuse_foreign(plan, work.dataset, path)
        say(f"Using the plan in {path}.")
        return plan
    return None


def _base(work: Work, found: Findings, options: PreprocessOptions) -> Choice | None:
    """plan.json and its volumes as they are; where there are none, the plan of the default planner.

    None where the default planner has no such configuration. DatasetError if plan.json was made for other
    data: only its own options could say what it becomes.
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
        try:
            plan = new_plan(work, found, as_usual)
        except NoConfigurationError:
            return None
        return Choice(
            work=work, plan=plan, asked=plan, planner=options_hash(work, as_usual), dtype=options.dtype
        )
    if not same_data(work, found) and not options.keep_plan:
        raise DatasetError(
            f"The dataset has changed since {path} was made. Run preprocess.py with the options of that plan "
            "first, or add --keep_plan."
        )
    planner, dtype = ("", options.dtype) if work.before is None else (work.before.planner, work.before.dtype)
    plan = read_plan(work.plan_folder)
    return Choice(work=work, plan=plan, asked=plan, planner=planner, dtype=dtype)
