"""The story that ends a training: predict the held-out cases whole, score them on their own grid, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet.case_features import weights_hash
from nnunet.evaluation.baselines import VolumeBaseline, volume_baseline
from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.class_files import final_fields
from nnunet.evaluation.classification import (
    AreaUnderCurve,
    ClassificationSummary,
    auc_of_score,
)
from nnunet.evaluation.figures import Curve
from nnunet.evaluation.overlap import CaseOverlap
from nnunet.evaluation.postprocessing import MasksOfCase
from nnunet.evaluation.report import REPORT_FILE, Fact, ReportPage, read_curves, write_report
from nnunet.evaluation.summary import SegmentationSummary, summarise_segmentation, write_summaries
from nnunet.evaluation.tables import write_overlap_table
from scripts.classical_fit import describe_scores
from scripts.classifier_files import ClassicalScores, read_scores
from scripts.evaluation_page import CURVES, PREDICTIONS_FILE, print_result
from scripts.fold_data import FoldCases, refuse_other_preparation
from scripts.members import METRICS_FILE
from scripts.model_run import ModelRun, PredictionRow, open_model, prediction_row, write_predictions_table
from scripts.prepared_prediction import (
    draw_extremes,
    predict_prepared,
    score_answer,
    score_classes,
    write_mask,
)
from scripts.run_options import RunOptions
from scripts.stage_notes import refuse_foreign_priors
from scripts.surface_pairs import MaskPairOnGrid, mean_by_label, surface_dice_by_label
from utils.contracts import NO_CLASS, Plan, PreprocessedCase
from utils.run_log import RUN_SUMMARY, RunLog
from utils.storage import write_array, write_json

FOLDER = "validation"
PROBABILITIES = "probabilities"  # a folder of its own: an array beside a mask would be taken for a second one


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCases:
    """Every predicted case as a row; overlap and surface Dice of those that have a reference."""

    rows: list[PredictionRow] = field(default_factory=list)
    overlaps: list[CaseOverlap] = field(default_factory=list)
    surfaces: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationScores:
    """What held-out cases score; a part is None where no case has a mask, or none a class."""

    segmentation: SegmentationSummary | None
    classes: ClassificationSummary | None
    volume_auroc: AreaUnderCurve | None
    volume: VolumeBaseline | None
    surface_dice: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """The fields of final_metrics.json."""
        found = _metrics(self.segmentation, self.classes, self.volume_auroc)
        found |= final_fields(self.classes, self.segmentation, self.surface_dice)
        return found | {"volume_baseline": self.volume}


def score_cases(
    scored: ScoredCases, cases: Sequence[PreprocessedCase], plan: Plan, seed: int
) -> ValidationScores:
    """Scores over all cases together, with intervals over patients; `scored` has a row per case, in order."""
    patients = {case.case_id: case.patient_id for case in cases}
    resampling = Resampling(seed=seed, groups=tuple(patients[overlap.case_id] for overlap in scored.overlaps))
    segmentation = None
    if scored.overlaps:
        segmentation = summarise_segmentation(scored.overlaps, resampling=resampling)
    return ValidationScores(
        segmentation=segmentation,
        classes=score_classes(
            cases,
            [row.class_probs for row in scored.rows],
            plan,
            Resampling(seed=seed, groups=tuple(patients.values())),
        ),
        volume_auroc=_volume_auc(cases, scored.rows),
        volume=_volume_baseline(cases, scored.rows, plan),
        surface_dice=mean_by_label(scored.surfaces),
    )


def write_tables(folder: Path, scored: ScoredCases, plan: Plan) -> None:
    """predictions.csv, metrics.csv and nnU-Net's summaries of scored cases."""
    write_predictions_table(folder / PREDICTIONS_FILE, scored.rows, plan)
    write_summaries(folder, scored.overlaps)
    write_overlap_table(folder / "metrics.csv", scored.overlaps)


def validate_fold(options: RunOptions, fold: FoldCases, checkpoint: Path, run_log: RunLog) -> Path:
    """Write masks, tables, final_metrics.json and report.html for the fold's validation cases."""
    started = time.perf_counter()
    run = open_model(options, checkpoint)
    plan = run.model.plan
    run.refuse_training_cases([case.case_id for case in fold.validation])
    refuse_other_preparation(plan, fold.plan, fold.folder)
    refuse_foreign_priors(plan, fold.folder, options.results)
    masks = options.results / FOLDER
    scored = _predict_and_score(run, fold, options, masks)
    write_tables(masks, scored, plan)
    scores = score_cases(scored, fold.validation, plan, options.seed)
    classical = read_scores(options.results, weights_hash(run.model.network))
    metrics = scores.record() | {
        "classifier": options.inference.classifier,
        "classical": classical,
        "checkpoint": str(checkpoint),
        "network": weights_hash(run.model.network),
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_json(options.results / METRICS_FILE, metrics)
    if scores.segmentation:
        run_log.log(RUN_SUMMARY, {"final/dsc": scores.segmentation.foreground_mean_dice})
    page = ReportPage(
        title=f"Validation of {plan.dataset}, fold {options.fold}",
        facts=(*_facts(options, fold, checkpoint), *_classical_facts(classical)),
        segmentation=scores.segmentation,
        classification=scores.classes,
        volume_auroc=scores.volume_auroc,
        volume=scores.volume,
        notes=collapse_notes(scores.classes),
        overlays=draw_extremes(scored.overlaps, fold.validation, plan),
        curves=_curves(options.results / options.logname),
    )
    write_report(options.results / REPORT_FILE, page)
    print_result(scores.segmentation, scores.classes, options.results / REPORT_FILE)
    return options.results / REPORT_FILE


def collapse_notes(classes: ClassificationSummary | None) -> tuple[str, ...]:
    """The report's warning where the classes are not told apart."""
    return (f"The classifier has collapsed: {classes.collapse}.",) if classes and classes.collapse else ()


def _predict_and_score(run: ModelRun, fold: FoldCases, options: RunOptions, masks: Path) -> ScoredCases:
    """Predict the cases one by one, write each mask, and keep the numbers only."""
    plan = run.model.plan
    scored = ScoredCases()
    for answer in predict_prepared(run, fold.validation):
        write_mask(masks, answer)
        spacing_mm = answer.case.footprint.native_spacing_mm
        scored.rows.append(prediction_row(answer.prediction, answer.mask, spacing_mm, plan))
        if options.training.npz:
            path = masks / PROBABILITIES / f"{answer.case.case_id}.npy"
            write_array(path, answer.prediction.label_probs.astype(np.float16))
        if overlap := score_answer(answer, plan, masks):
            scored.overlaps.append(overlap)
            assert answer.reference is not None  # the overlap was measured against it
            case = answer.case
            both = MasksOfCase(case_id=case.case_id, truth=answer.reference, predicted=answer.mask)
            scored.surfaces.append(surface_dice(case, both, overlap, plan))
    return scored


def _curves(log: Path) -> tuple[Curve, ...]:
    return read_curves(log, CURVES) if log.is_file() else ()


def _volume_auc(cases: Sequence[PreprocessedCase], rows: Sequence[PredictionRow]) -> AreaUnderCurve | None:
    """How well the predicted volume alone tells two classes apart: what a classifier has to beat."""
    target = np.array([case.class_target for case in cases])
    if (target == NO_CLASS).any() or set(target.tolist()) != {0, 1}:
        return None
    return auc_of_score(target, np.array([row.volumes_ml[-1] for row in rows]))


def _volume_baseline(
    cases: Sequence[PreprocessedCase], rows: Sequence[PredictionRow], plan: Plan
) -> VolumeBaseline | None:
    """What the predicted volumes alone score, out of fold; None where no class is known or predicted."""
    target = np.array([case.class_target for case in cases])
    known = target != NO_CLASS
    if not known.any() or not all(row.class_probs for row in rows):
        return None
    volumes = np.array([row.volumes_ml for row in rows])
    patients = [case.patient_id for case in cases if case.class_target != NO_CLASS]
    return volume_baseline(target[known], volumes[known], plan.class_names, patients=patients)


def surface_dice(
    case: PreprocessedCase, masks: MasksOfCase, overlap: CaseOverlap, plan: Plan
) -> dict[str, float]:
    """The surface Dice of one case by label name, on the grid of its scan."""
    pair = MaskPairOnGrid(
        truth=masks.truth,
        predicted=masks.predicted,
        spacing_mm=case.footprint.native_spacing_mm,
        ignore_label=plan.ignore_label,
    )
    return surface_dice_by_label(overlap, pair)


def _facts(options: RunOptions, fold: FoldCases, checkpoint: Path) -> tuple[Fact, ...]:
    return (
        Fact(name="Dataset", value=fold.plan.dataset),
        Fact(name="Configuration", value=fold.plan.configuration),
        Fact(
            name="Fold",
            value=f"{options.fold}: {len(fold.training)} training, {len(fold.validation)} validation",
        ),
        Fact(name="Checkpoint", value=str(checkpoint)),
        Fact(name="Mirroring at test time", value="yes" if options.inference.tta else "no"),
        Fact(name="Class probabilities of", value=options.inference.classifier),
    )


def _classical_facts(classical: Mapping[str, ClassicalScores]) -> tuple[Fact, ...]:
    return tuple(
        Fact(name=f"Classical classifier {name}", value=describe_scores(scores))
        for name, scores in classical.items()
    )


def _metrics(
    segmentation: SegmentationSummary | None,
    classes: ClassificationSummary | None,
    volume_auc: AreaUnderCurve | None,
) -> dict[str, Any]:
    of_classes = {
        "classification": None if classes is None else classes.to_json(),
        "auroc_of_predicted_volume": None if volume_auc is None else volume_auc.value,
    }
    if segmentation is None:  # no held-out case has a mask
        return {"num_cases": 0, "dsc_mean": None, "structures": {}} | of_classes
    structures = {
        item.name: {
            "dsc_mean": item.mean_dice,
            "dsc_median": item.median_dice,
            "dsc_interval": [item.dice_interval.low, item.dice_interval.high],
        }
        for item in (*segmentation.structures, segmentation.whole_organ)
    }
    return {
        "num_cases": len(segmentation.cases),
        "dsc_mean": segmentation.foreground_mean_dice,
        "structures": structures,
    } | of_classes
