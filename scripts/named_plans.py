"""A plan of a prepared folder by its name, and the volumes that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_preprocessing.manifest import volume_differences
from data_preprocessing.plan_check import validate_plan
from utils.contracts import Dataset, Plan
from utils.errors import DatasetError, UserError
from utils.prepared_folder import (
    CASCADE,
    DATASET,
    DEFAULT_PLAN,
    LOWRES,
    MADE_BY,
    check_plan_name,
    own_folder,
    plan_file,
    plan_path,
    read_plan,
)
from utils.storage import read_record

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions

NAMES = ("channel_names", "label_names", "ignore_label", "regions", "region_names", "class_names")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlan:
    """A plan, and the folder of the volumes that were prepared as it says."""

    plan: Plan
    folder: Path


def find_plan(folder: Path, name: str) -> NamedPlan:
    """The plan called `name` of the prepared `folder`, with that folder or with its own.

    DatasetError if it contradicts itself, is of another dataset, or if neither folder holds volumes as it
    says.
    """
    plan = read_plan(folder, name)
    path = plan_path(folder, name)
    described = folder if path.is_relative_to(folder) else path.parent
    if (described / DATASET).is_file():
        refuse_foreign(plan, read_record(Dataset, described / DATASET), path)
    if name == DEFAULT_PLAN:
        return NamedPlan(plan=plan, folder=folder)
    validate_plan(plan)
    differences: tuple[str, ...] = ()
    for place in (folder, own_folder(folder, name)):
        if plan_file(place).is_file():
            differences = volume_differences(plan, read_plan(place))
            if not differences:
                return NamedPlan(plan=plan, folder=place)
    remedy = f"Run preprocess.py --plan_name {name} again: it prepares the volumes of this plan beside them."
    if name == CASCADE:
        remedy = f"Delete {path} and run {MADE_BY[CASCADE]} again, which makes it for the volumes."
    told = f"{folder}: the plan {name} differs from that of the prepared volumes in {', '.join(differences)}"
    raise DatasetError(f"{told}. {remedy}")


def refuse_foreign(plan: Plan, dataset: Dataset, path: Path) -> None:
    """DatasetError if the plan in the file `path` is not of this dataset, or not of its labels and classes.

    Channels count as far as the dataset has them: a plan may add one for the foreground.
    """
    count = len(dataset.channel_names)
    here = {"dataset": dataset.name} | {name: getattr(dataset, name) for name in NAMES}
    there = {name: getattr(plan, name) for name in here} | {"channel_names": plan.channel_names[:count]}
    wrong = [
        f"{name} {_text(there[name])} (here {_text(value)})"
        for name, value in here.items()
        if there[name] != value
    ]
    if wrong:
        raise DatasetError(
            f"{path} is no plan of this dataset: {'; '.join(wrong)}. A plan of another dataset is moved here "
            f"by preprocess.py --task {dataset.name} --plan_from {path} --plan_name NAME; where the dataset "
            "has changed, run preprocess.py again with the options of the plan."
        )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


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
