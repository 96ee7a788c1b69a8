"""A plan of a prepared folder by its name, and the volumes that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_preprocessing.manifest import volume_differences
from data_preprocessing.plan_check import validate_plan
from data_preprocessing.previous_stage import CASCADE
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.prepared_folder import DEFAULT_PLAN, check_plan_name, own_folder, plan_file, read_plan

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions

LOWRES = "lowres"  # the folder <task>_3d_lowres is that of --lowres


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlan:
    """A plan, and the folder of the volumes that were prepared as it says."""

    plan: Plan
    folder: Path


def find_plan(folder: Path, name: str) -> NamedPlan:
    """The plan called `name` of the prepared `folder`, with that folder or with its own.

    DatasetError if it contradicts itself, or if neither folder holds volumes as it says.
    """
    plan = read_plan(folder, name)
    if name == DEFAULT_PLAN:
        return NamedPlan(plan=plan, folder=folder)
    validate_plan(plan)
    differences: tuple[str, ...] = ()
    for place in (folder, own_folder(folder, name)):
        if plan_file(place).is_file():
            differences = volume_differences(plan, read_plan(place))
            if not differences:
                return NamedPlan(plan=plan, folder=place)
    raise DatasetError(
        f"{folder}: the plan {name} differs from that of the prepared volumes in {', '.join(differences)}. "
        f"Run preprocess.py --plan_name {name} again: it prepares the volumes of this plan beside them."
    )


def name_of(options: PreprocessOptions) -> str:
    """What the plan is called; UserError for a name that no file or folder can have."""
    name = check_plan_name(options.plan_name or options.planner.plan_name)
    if name == LOWRES or name.startswith(f"{LOWRES}_"):
        raise UserError(
            f"--plan_name {name}: {name!r} cannot be the name of a plan, the folders of --configuration "
            f"3d_{LOWRES} have it."
        )
    if name == CASCADE:
        raise UserError(
            f"--plan_name {CASCADE}: {CASCADE!r} cannot be the name of a plan: it is the one that "
            "scripts/cascade.py makes."
        )
    return name


def place_of(base: Path, options: PreprocessOptions) -> Path:
    """The folder that a run with these options begins in: `base`, or the own one of a named plan."""
    name = name_of(options)
    if name == DEFAULT_PLAN:
        return base
    if options.exec_mode != "training":
        return find_plan(base, name).folder
    own = own_folder(base, name)
    return own if plan_file(own).is_file() and not plan_file(base).is_file() else base
