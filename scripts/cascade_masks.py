"""The masks of a cascade's first stage: of every case, by the network that held it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from data_preprocessing.previous_stage import prior_label
from nnunet.case_features import weights_hash
from scripts.fold_data import read_fold, refuse_other_preparation
from scripts.members import fold_folder, fold_folders
from scripts.model_run import ModelRun, find_checkpoint, open_model, planned_spacing_mm
from scripts.prepared_prediction import network_input
from scripts.run_options import RunOptions
from scripts.stage_notes import Priors, find_note, read_priors
from utils.errors import DatasetError
from utils.prepared_folder import PRIOR, PRIORS, case_file, list_prepared
from utils.run_log import progress, say
from utils.storage import write_array, write_json


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstStage:
    """The finished networks of the low resolution, one for each fold, and their options."""

    options: RunOptions
    models: tuple[ModelRun, ...]

    @property
    def networks(self) -> tuple[str, ...]:
        """The hashes of their weights."""
        return tuple(weights_hash(model.model.network) for model in self.models)


def open_first_stage(options: RunOptions) -> FirstStage:
    """The networks of all folds in --results.

    DatasetError where the low resolution was prepared otherwise since they were trained.
    """
    data = read_fold(replace(options, fold=0))
    models = []
    for fold in range(len(data.folds)):
        models.append(open_model(options, find_checkpoint(fold_folder(options.results, fold))))
        refuse_other_preparation(models[-1].plan, data.plan, data.folder)
    return FirstStage(options=options, models=tuple(models))


def write_priors(stage: FirstStage, base: Path) -> None:
    """Write <case>_prior.npy into `base` for every case, by the low-resolution network that held it out.

    Masks that lie there from the same networks are kept. The predictions are those of the options, with
    --tta mirrored.
    """
    fine = {case.case_id: case for case in list_prepared(base)}
    if _are_there(base, stage.networks, list(fine)):
        say(f"The masks of the previous stage are in {base}.")
        return
    (base / PRIORS).unlink(missing_ok=True)  # an interruption leaves masks of nobody
    for fold, model in enumerate(stage.models):
        held_out = read_fold(replace(stage.options, fold=fold)).validation
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
    write_json(base / PRIORS, Priors(networks=stage.networks))


def refuse_other_first_stage(results: Path, networks: Sequence[str]) -> None:
    """DatasetError if folds of the second stage in `results` were trained with masks of other networks."""
    note = find_note(results)
    if note is None or not note.stage.networks or note.stage.networks == tuple(networks):
        return
    if folds := fold_folders(results):
        raise DatasetError(
            f"{next(iter(folds.values()))} was trained with masks of other networks than those of "
            f"{note.results} are now. Delete {results} to train the second stage anew, or give another "
            "--results."
        )


def _are_there(base: Path, networks: tuple[str, ...], case_ids: Sequence[str]) -> bool:
    found = read_priors(base)
    is_same = found is not None and found.networks == networks
    return is_same and all(case_file(base, name, PRIOR).is_file() for name in case_ids)
