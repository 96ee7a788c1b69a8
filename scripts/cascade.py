"""The story of a cascade: low resolution in all folds, its out-of-fold masks, full resolution on top."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.previous_stage import CONFIGURATION
from scripts.crossval import run as cross_validate
from scripts.crossval_jobs import FoldProcesses, FoldTrainer
from scripts.crossval_words import without, words_for_folds
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.command import run_command
from utils.errors import DatasetError, UserError
from utils.prepared_folder import (
    CASCADE,
    DEFAULT_PLAN,
    INHERITS,
    LOWRES,
    PRIOR,
    PRIORS,
    case_file,
    list_prepared,
    own_folder,
    plan_file,
    read_plan,
)
from utils.run_log import progress, say
from utils.storage import read_json, read_record, write_array, write_json

if TYPE_CHECKING:
    from scripts.fold_data import FoldCases

DESCRIPTION = (
    "Train a cascade with the options of main.py: all folds at low resolution into <results>/lowres, their "
    "masks of the held-out cases as input, then the folds at full resolution (or those of --folds) into "
    "<results>/cascade. Run it again after an interruption: what is finished is kept."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """Which network gave the masks of each fold's held-out cases, by the hash of its weights."""

    networks: tuple[str, ...]


def run(options: RunOptions, words: Sequence[str], trainer: FoldTrainer) -> Path:
    """Run what is missing of both stages and return the last one's report.

    `words` are what main.py is told beside plan, fold and results. DatasetError where a configuration is not
    prepared, or where a case is held out by no fold.
    """
    from scripts.fold_data import prepared_folder, read_fold
    from scripts.stage_notes import write_previous_stage

    options = _without_configuration(options)
    base = _checked(options, prepared_folder(options))
    lowres, cascade = options.results / LOWRES, options.results / CASCADE
    others = without(words, {"plan", "configuration"})
    say(f"Cascade, stage 1: low resolution, all folds, into {lowres}")
    first = replace(options, plan=LOWRES, results=lowres, folds=())
    _refuse_uncovered(read_fold(replace(first, fold=0)))
    cross_validate(first, (*others, "--plan", LOWRES), trainer)
    write_priors(first, base)
    write_cascade_plan(base, options.plan)
    say(f"Cascade, stage 2: full resolution with the masks of stage 1, into {cascade}")
    cascade.mkdir(parents=True, exist_ok=True)
    write_previous_stage(cascade, lowres)
    second = replace(options, plan=CASCADE, results=cascade)
    return cross_validate(second, (*others, "--plan", CASCADE), trainer)


def write_priors(options: RunOptions, base: Path) -> None:
    """Write <case>_prior.npy into `base` for every case, by the low-resolution network that held it out.

    Masks that lie there from the same networks are kept. The predictions are those of the options, with
    --tta mirrored.
    """
    from data_preprocessing.previous_stage import prior_label
    from nnunet.case_features import weights_hash
    from scripts.fold_data import read_fold
    from scripts.members import fold_folder
    from scripts.model_run import find_checkpoint, open_model, planned_spacing_mm
    from scripts.prepared_prediction import network_input

    fine = {case.case_id: case for case in list_prepared(base)}
    folds = range(len(read_fold(replace(options, fold=0)).folds))
    models = [open_model(options, find_checkpoint(fold_folder(options.results, fold))) for fold in folds]
    networks = Priors(networks=tuple(weights_hash(model.model.network) for model in models))
    if _are_there(base, networks, list(fine)):
        say(f"The masks of the previous stage are in {base}.")
        return
    for fold, model in zip(folds, models, strict=True):
        held_out = read_fold(replace(options, fold=fold)).validation
        for case in progress(held_out, total=len(held_out), label=f"Masks for stage 2, fold {fold}"):
            spacing_mm = planned_spacing_mm(case.footprint)
            prediction = model.predict(network_input(case, model.plan), case.case_id, spacing_mm)
            prior = prior_label(
                prediction.label_probs,
                case.footprint,
                fine[case.case_id].footprint,
                regions_class_order=model.plan.regions_class_order,
            )
            write_array(case_file(base, case.case_id, PRIOR), prior)
    write_json(base / PRIORS, networks)


def write_cascade_plan(base: Path, parent: str) -> None:
    """The plan `cascade` beside the others: `parent` with the previous stage's labels as channels.

    One that is there already, perhaps edited by hand, is kept. DatasetError if it knows other labels.
    """
    path = plan_file(base, CASCADE)
    labels = read_plan(base, parent).num_labels - 1
    if path.is_file():
        if read_plan(base, CASCADE).prior_labels != labels:
            raise DatasetError(f"{path} should have prior_labels {labels}. Correct or delete it.")
        return
    write_json(path, {INHERITS: parent, "configuration": CONFIGURATION, "prior_labels": labels})


def _without_configuration(options: RunOptions) -> RunOptions:
    """The options by --dim and --plan alone; 3d_cascade_fullres says what is trained anyway."""
    is_whole = options.configuration == CONFIGURATION and options.plan == CASCADE
    return replace(options, configuration=None, plan=DEFAULT_PLAN if is_whole else options.plan)


def _checked(options: RunOptions, base: Path) -> Path:
    """`base`, the prepared folder of full resolution, if the low resolution is prepared beside it."""
    if options.dim != 3:
        raise UserError("A cascade is three-dimensional. Use --dim 3.")
    if options.plan in (LOWRES, CASCADE):
        raise UserError(
            f"--plan {options.plan} is one stage of a cascade. Name the plan of full resolution, or none."
        )
    low = own_folder(base, LOWRES)
    if not plan_file(low).is_file():
        raise DatasetError(
            f"{low} is missing. Run: python preprocess.py --data RAW --results {base.parent} "
            f"--task {options.task} --dim 3 --lowres (it says so if a low resolution would gain nothing)."
        )
    here, there = ({case.case_id for case in list_prepared(folder)} for folder in (base, low))
    if here != there:
        name = sorted(here ^ there)[0]
        raise DatasetError(f"{base} and {low} hold different cases ({name}). Run preprocess.py for both.")
    return base


def _refuse_uncovered(fold: FoldCases) -> None:
    """DatasetError unless each case is held out once: only then has a mask for it been predicted unseen."""
    held_out = {name for one in fold.folds for name in one.val}
    if missing := sorted({case.case_id for case in (*fold.training, *fold.validation)} - held_out):
        raise DatasetError(
            f"{fold.folder}: no fold holds out {missing[0]} ({len(missing)} cases in all), so no network of "
            "the previous stage predicts them unseen. A cascade needs folds that hold out every case."
        )


def _are_there(base: Path, networks: Priors, case_ids: Sequence[str]) -> bool:
    path = base / PRIORS
    if not path.is_file() or not isinstance(read_json(path), dict):
        return False
    is_same = read_record(Priors, path) == networks
    return is_same and all(case_file(base, name, PRIOR).is_file() for name in case_ids)


def main() -> None:
    """Run from the command line."""
    words = sys.argv[1:]
    command = read_command(words, program="cascade.py", description=DESCRIPTION)
    run(command.options, words_for_folds(words), FoldProcesses())


if __name__ == "__main__":
    sys.exit(run_command(main))
