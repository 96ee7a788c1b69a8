"""Two cross-validations together: the mean of what two models say of a case that neither has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from data_preprocessing.restore import painted_regions
from data_preprocessing.volume_io import write_volume
from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from nnunet.training.trainer import CHECKPOINT_FOLDER
from scripts.best_candidates import Candidate
from scripts.crossval_folds import fold_metrics
from scripts.crossval_scores import PooledCase
from scripts.ensemble import on_the_scan
from scripts.final_validation import FOLDER, PROBABILITIES
from scripts.members import fold_folder
from scripts.model_run import ModelRun, find_checkpoint, open_model, planned_spacing_mm
from scripts.prepared_prediction import mask_file, network_input
from scripts.stage_notes import find_note, refuse_foreign_priors
from utils.contracts import Plan, Prediction
from utils.options import describe
from utils.run_log import progress
from utils.storage import read_array

ALIKE = ("tta", "overlap", "blend", "classifier", "class_vote", "amp")  # one prediction has one value of each


def reason_not_to_pair(first: Candidate, second: Candidate) -> str:
    """Why no single command could predict with both; empty where one can."""
    values, others = describe(first.options), describe(second.options)
    different = [name for name in ALIKE if values[name] != others[name]]
    if different:
        return f"they were validated with different --{', --'.join(different)}"
    notes = [find_note(one.results[0]) for one in (first, second) if one.pool.plan.prior_labels]
    if len({note.results if note else None for note in notes}) > 1:
        return "they are cascades with different previous stages"
    return ""


def pair_of(first: Candidate, second: Candidate, folder: Path) -> Candidate:
    """The pair as a candidate of its own; its masks are written below `folder`."""
    others = {pooled.case.case_id: pooled for pooled in second.pool.cases}
    # Fold by fold, so that each model is opened once where both have the same folds.
    both = sorted(
        ((pooled, others[pooled.case.case_id]) for pooled in first.pool.cases),
        key=lambda pair: (pair[0].fold, pair[1].fold, pair[0].case.case_id),
    )
    answers = FoldAnswers(first), FoldAnswers(second)
    cases = []
    for pair in progress(both, total=len(both), label="Pair"):
        mean = mean_prediction(
            MemberAnswer(prediction=one.on_the_scan(pooled))
            for one, pooled in zip(answers, pair, strict=True)
        )
        cases.append(_joined(pair[0], mean, first.pool.plan, folder / FOLDER))
    return Candidate(
        name=f"{first.name} + {second.name}",
        results=(*first.results, *second.results),
        options=first.options,
        pool=replace(first.pool, cases=tuple(sorted(cases, key=lambda pooled: pooled.case.case_id))),
        folder=folder,
        # Where those of one are unknown, the pair's are.
        networks=(*first.networks, *second.networks) if first.networks and second.networks else (),
    )


@final
class FoldAnswers:
    """The answers of a cross-validation's folds, kept or computed; one model is open at a time."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._open: tuple[int, ModelRun] | None = None

    def on_the_scan(self, pooled: PooledCase) -> Prediction:
        """Label probabilities (C, X, Y, Z) of the model that did not see the case, and the class it told."""
        case, plan = pooled.case, self._candidate.pool.plan
        folder = fold_folder(self._candidate.results[0], pooled.fold) / FOLDER
        path = folder / PROBABILITIES / f"{case.case_id}.npy"
        if path.is_file() and path.stat().st_mtime >= self._checkpoint(pooled.fold).stat().st_mtime:
            probs = read_array(path).astype(np.float32)
        else:
            run = self._model(pooled.fold)
            image, spacing_mm = network_input(case, run.plan), planned_spacing_mm(case.footprint)
            probs = run.predict(image, case.case_id, spacing_mm).label_probs
        told = np.array(pooled.class_probs) if pooled.class_probs else None
        prediction = Prediction(case_id=case.case_id, label_probs=probs, class_probs=told)
        return on_the_scan(prediction, case.footprint, plan)

    def _checkpoint(self, fold: int) -> Path:
        """The checkpoint that was validated."""
        results = self._candidate.results[0]
        name = Path(fold_metrics(results, fold)["checkpoint"]).name
        path = fold_folder(results, fold) / CHECKPOINT_FOLDER / name
        return path if path.is_file() else find_checkpoint(fold_folder(results, fold))

    def _model(self, fold: int) -> ModelRun:
        if self._open is None or self._open[0] != fold:
            options = replace(self._candidate.options, results=fold_folder(self._candidate.results[0], fold))
            self._open = (fold, open_model(options, self._checkpoint(fold)))
            case = self._candidate.pool.cases[0].case
            refuse_foreign_priors(self._open[1].plan, case.image.parent, options.results)
        return self._open[1]


def _joined(pooled: PooledCase, mean: Prediction, plan: Plan, folder: Path) -> PooledCase:
    """Write the pair's mask of one case, and return the case with it."""
    order, footprint = plan.regions_class_order, pooled.case.footprint
    probs = mean.label_probs
    mask = painted_regions(probs, order) if order else probs.argmax(axis=0).astype(np.uint8)
    path = mask_file(folder, pooled.case)
    write_volume(
        path,
        mask,
        affine=np.array(footprint.affine),
        qform_code=footprint.qform_code,
        sform_code=footprint.sform_code,
        spacing_mm=footprint.native_spacing_mm,
    )
    told = () if mean.class_probs is None else tuple(mean.class_probs.tolist())
    return replace(pooled, mask=path, class_probs=told)
