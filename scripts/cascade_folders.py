"""The two prepared folders of a cascade: full resolution, and the low one, prepared where it is missing."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.dataset import task_code
from data_preprocessing.manifest import planner_hash, read_manifest
from data_preprocessing.planners import PlannerOptions
from data_preprocessing.previous_stage import CONFIGURATION
from scripts.configurations import FINE
from scripts.fold_data import FoldCases, prepared_folder, read_fold
from scripts.named_plans import find_plan
from scripts.preprocess import PreprocessOptions
from scripts.preprocess import run as preprocess
from scripts.run_options import RunOptions
from utils.errors import DatasetError, UserError
from utils.prepared_folder import (
    CASCADE,
    DATASET,
    DEFAULT_PLAN,
    INHERITS,
    LOWRES,
    SPLITS,
    list_prepared,
    own_folder,
    plan_file,
    read_plan,
)
from utils.run_log import say
from utils.storage import read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeFolders:
    """Where the volumes of both stages lie; `parent` is the plan of full resolution by its name in `fine`."""

    low: Path
    fine: Path
    parent: str


def cascade_folders(options: RunOptions) -> CascadeFolders:
    """The folders of --plan and of the low resolution, which is prepared here where it is missing.

    DatasetError where that cannot be done, with the command that does it; where the folders hold different
    cases or folds; or where no fold holds out some case.
    """
    if options.dim != 3:
        raise UserError("A cascade is three-dimensional. Use --dim 3.")
    if options.plan in (LOWRES, CASCADE):
        raise UserError(
            f"--plan {options.plan} is one stage of a cascade. Name the plan of full resolution, or none."
        )
    base = prepared_folder(options)
    fine = find_plan(base, options.plan).folder
    low = own_folder(base, LOWRES)
    if not plan_file(low).is_file():
        _prepare_low(base if plan_file(base).is_file() else fine, low)
    here, there = ({case.case_id for case in list_prepared(folder)} for folder in (fine, low))
    if here != there:
        name = sorted(here ^ there)[0]
        raise DatasetError(f"{fine} and {low} hold different cases ({name}). Run preprocess.py for both.")
    first = read_fold(replace(options, plan=LOWRES, fold=0))
    _refuse_uncovered(first)
    _refuse_other_folds(first, read_fold(replace(options, fold=0)))
    return CascadeFolders(low=low, fine=fine, parent=options.plan if fine == base else DEFAULT_PLAN)


def write_cascade_plan(folders: CascadeFolders) -> None:
    """The plan `cascade` beside the others: `parent` with the previous stage's labels as channels.

    One that is there already, perhaps edited by hand, is kept. DatasetError if it follows from another plan,
    or knows other labels.
    """
    path = plan_file(folders.fine, CASCADE)
    labels = read_plan(folders.fine, folders.parent).num_labels - 1
    if path.is_file():
        before = read_json(path).get(INHERITS, folders.parent)
        if before != folders.parent:
            raise DatasetError(
                f"{path} inherits from the plan {before}, not from {folders.parent}. Give --plan {before}, "
                "or delete the file and choose another --results: what was trained keeps its plan."
            )
        if read_plan(folders.fine, CASCADE).prior_labels != labels:
            raise DatasetError(f"{path} should have prior_labels {labels}. Correct or delete it.")
        return
    write_json(path, {INHERITS: folders.parent, "configuration": CONFIGURATION, "prior_labels": labels})


def _prepare_low(base: Path, low: Path) -> None:
    """Prepare the low resolution from the scans that `base` was prepared from, with its options."""
    options = _options_of(base)
    if options is None or own_folder(options.results / f"{task_code(_root(base))}_3d", LOWRES) != low:
        raise DatasetError(
            f"{low} is missing, and cannot be prepared here: {_reason(base)}. Run: {_command(base)} (it says "
            "so if a low resolution would gain nothing)."
        )
    say(f"Cascade: {low} is missing and is prepared from {_root(base)}.")
    preprocess(options)
    if (base / SPLITS).is_file():
        shutil.copyfile(base / SPLITS, low / SPLITS)


def _options_of(base: Path) -> PreprocessOptions | None:
    """The options of preprocess.py for the low resolution; None where they or the scans are unknown."""
    root, before = _root(base), read_manifest(base)
    if before is None or not root.is_dir():
        return None
    plan = read_plan(base)
    for planner in _likely_planners(base):
        made = planner_hash(planner, configuration=FINE, foreground_channel=plan.foreground_channel)
        if made == before.planner:
            return PreprocessOptions(
                data=root.parent,
                results=base.parent,
                task=root.name,
                lowres=True,
                ohe=plan.foreground_channel,
                dtype="float32" if before.dtype == "float32" else "float16",
                planner=planner,
            )
    return None


def _likely_planners(base: Path) -> Iterator[PlannerOptions]:
    """What `base` may have been planned with; its manifest holds a hash by which to tell."""
    plan = read_plan(base)
    usual = replace(PlannerOptions(), preset="nvidia" if plan.preset == "nvidia" else "nnunet")
    for patch in (None, plan.patch):
        yield replace(usual, patch_size=patch)


def _root(base: Path) -> Path:
    """The dataset that a prepared folder was made from, as it is noted there."""
    return Path(read_json(base / DATASET)["root"])


def _reason(base: Path) -> str:
    root = _root(base)
    if not root.is_dir():
        return f"{root}, the dataset of {base}, is not there any more"
    return f"the options that {base} was planned with are not noted in it; repeat them"


def _command(base: Path) -> str:
    root, plan = _root(base), read_plan(base)
    data = str(root.parent) if root.is_dir() else "RAW"
    words = ["python", "preprocess.py", "--data", data, "--results", str(base.parent), "--task", root.name]
    words += ["--dim", "3", "--lowres", *(["--ohe"] if plan.foreground_channel else [])]
    if plan.preset != PlannerOptions().preset:
        words += ["--preset", plan.preset]
    return shlex.join(words)


def _refuse_uncovered(fold: FoldCases) -> None:
    """DatasetError unless each case is held out once: only then has a mask for it been predicted unseen."""
    held_out = {name for one in fold.folds for name in one.val}
    if missing := sorted({case.case_id for case in (*fold.training, *fold.validation)} - held_out):
        raise DatasetError(
            f"{fold.folder}: no fold holds out {missing[0]} ({len(missing)} cases in all), so no network of "
            "the previous stage predicts them unseen. A cascade needs folds that hold out every case."
        )


def _refuse_other_folds(first: FoldCases, second: FoldCases) -> None:
    """DatasetError where a fold of one stage holds out other cases than that of the other."""
    sides = ([set(fold.val) for fold in one.folds] for one in (first, second))
    if next(sides) != next(sides):
        raise DatasetError(
            f"{first.folder} and {second.folder} have different folds. Both stages need the same: copy the "
            f"{SPLITS} of one folder into the other, or delete it in both."
        )
