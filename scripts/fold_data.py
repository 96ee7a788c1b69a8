"""Which cases of which folder a run learns from, is scored on, or predicts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_loading.catalogue import refuse_unpaired
from data_preprocessing.dataset import task_code
from scripts.brats_plan import with_brats_regions
from scripts.configurations import refuse_other_configuration
from scripts.named_plans import find_plan
from scripts.run_options import ALL_CASES, RunOptions
from scripts.trained_plan import trained_plan
from utils.contracts import NO_CLASS, Plan, PreprocessedCase
from utils.errors import DatasetError, UserError
from utils.left_right import with_left_right
from utils.prepared_folder import PLAN, SPLITS, list_prepared, own_folder, plan_file, plan_names
from utils.splits import Fold, make_folds, pick_fold, read_folds

TASK_NUMBER = re.compile(r"(?:Task|Dataset)?([0-9]+)(?:_.*)?")
PARTS = ("val", "test")  # folders of cases without folds, below a preprocessed folder
PREPARATION = (
    "axis_order",
    "spacing_mm",
    "normalisers",
    "uses_mask",
    "intensity",
    "preset",
    "foreground_channel",
    "resampling",
    "label_names",
    "ignore_label",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldCases:
    """The preprocessed cases of one fold; with `--fold all` none is held out, and there are no folds."""

    folder: Path
    plan: Plan
    training: tuple[PreprocessedCase, ...]
    validation: tuple[PreprocessedCase, ...]
    folds: tuple[Fold, ...]  # all folds of the dataset, this one among them


def prepared_folder(options: RunOptions) -> Path:
    """`--data` itself where it is a preprocessed folder, else `<data>/<task>_<dim>d`.

    The folder need not exist by itself where the plan of that name has a folder of its own beside it.
    """
    if (options.data / PLAN).is_file():
        return options.data
    names = [f"{code}_{options.dim}d" for code in _codes(options.task)]
    folders = [options.data / name for name in names]
    found = [
        folder
        for folder in folders
        if plan_file(folder).is_file() or plan_file(own_folder(folder, options.plan)).is_file()
    ]
    if len(found) > 1 and found[0] != folders[0]:
        present = ", ".join(folder.name for folder in found)
        raise UserError(
            f"--task {options.task} is ambiguous: {options.data} has {present}. "
            "Give the number as it is written there."
        )
    if found:
        return found[0]
    others = [name for folder in folders for name in plan_names(folder)]
    told = f" It has the plans {', '.join(others)}: choose one with --plan." if others else ""
    raise DatasetError(
        f"{options.data} has no preprocessed folder {names[0]}.{told} "
        f"Run: python preprocess.py --data RAW --results {options.data} "
        f"--task {options.task} --dim {options.dim}"
    )


def _codes(task: str) -> list[str]:
    """What a prepared folder's name may begin with: the dataset's own code, then other ways to write it.

    MSD numbers have two digits, nnU-Net's three; people write either, or neither.
    """
    code = task_code(Path(task))
    number = TASK_NUMBER.fullmatch(code)
    others = [] if number is None else [format(int(number[1]), width) for width in ("d", "02d", "03d")]
    return list(dict.fromkeys([code, *([number[1]] if number else []), *others]))


def read_fold(options: RunOptions) -> FoldCases:
    """The plan and the two sides of the fold; the dataset's own splits_final.json wins over made ones."""
    named = find_plan(prepared_folder(options), options.plan)
    folder, plan = named.folder, named.plan
    _refuse_other_dimension(plan, folder, options.dim)
    refuse_other_configuration(plan, folder, options)
    if options.brats:
        plan = with_brats_regions(plan, folder)
    refuse_unpaired(folder)
    cases = {case.case_id: case for case in list_prepared(folder)}
    if not cases:
        raise DatasetError(f"{folder} has no complete case. Run preprocess.py again.")
    folds, fold = (), Fold(train=tuple(cases), val=())
    if options.fold != ALL_CASES:
        folds = _all_folds(folder, cases, options)
        patients = {case.case_id: case.patient_id for case in cases.values()}
        file = folder / SPLITS
        source = file if file.is_file() else f"--nfolds {options.nfolds}"
        fold = pick_fold(folds, options.fold, patients=patients, source=source)
    return FoldCases(
        folder=folder,
        plan=with_left_right(
            trained_plan(plan, options.network), options.mirror_left_right, options.left_right_pairs
        ),
        training=tuple(cases[name] for name in sorted(fold.train)),
        validation=tuple(cases[name] for name in sorted(fold.val)),
        folds=folds,
    )


def _refuse_other_dimension(plan: Plan, folder: Path, dim: int) -> None:
    """--data may be the prepared folder itself, whose plan then has to be of the --dim that names results."""
    planned = 2 if plan.patch[0] == 1 else 3
    if planned != dim:
        raise UserError(f"{folder} is planned for --dim {planned}, not {dim}. Give --dim {planned}.")


def cases_to_predict(options: RunOptions) -> tuple[PreprocessedCase, ...]:
    """The cases of `--data` if it is itself a folder of prepared cases (val/, test/), else of its test/.

    Where there is no test/ either, the validation cases of the fold.
    """
    is_part = options.data.name in PARTS and (options.data.parent / PLAN).is_file()
    if (is_part or not (options.data / PLAN).is_file()) and (cases := list_prepared(options.data)):
        return cases
    test = find_plan(prepared_folder(options), options.plan).folder / "test"
    if test.is_dir() and (cases := list_prepared(test)):
        return cases
    refuse_all_cases(options, "predicts the cases that a fold holds out")
    return read_fold(options).validation


def refuse_all_cases(options: RunOptions, what: str) -> None:
    """UserError for `--fold all` where the command `what`: that model has seen every case."""
    if options.fold == ALL_CASES:
        raise UserError(
            f"This command {what}, and --fold {ALL_CASES} holds none out. Give scans with -i, or the number "
            "of a fold."
        )


def _all_folds(folder: Path, cases: dict[str, PreprocessedCase], options: RunOptions) -> tuple[Fold, ...]:
    if (folder / SPLITS).is_file():
        return read_folds(folder / SPLITS)
    ordered = [cases[name] for name in sorted(cases)]
    return make_folds(
        [case.case_id for case in ordered],
        [case.patient_id for case in ordered],
        [None if case.class_target == NO_CLASS else case.class_target for case in ordered],
        num_folds=options.nfolds,
    )


def refuse_other_preparation(model: Plan, folder_plan: Plan, folder: Path) -> None:
    """DatasetError if the volumes of `folder` were not made as the model's were: it would guess silently."""
    changed = [name for name in PREPARATION if getattr(model, name) != getattr(folder_plan, name)]
    if changed:
        raise DatasetError(
            f"{folder} was prepared with another {', '.join(changed)} than the model was trained with. "
            "Give the --plan that it was trained with, or predict the raw scans with -i instead."
        )
