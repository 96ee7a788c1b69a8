"""The held-out cases of all folds together: scores, tables, report, and the postprocessing that helps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_preprocessing.volume_io import read_label_volume
from nnunet.evaluation.postprocessing import MasksOfCase, Postprocessing, find_postprocessing
from nnunet.evaluation.report import REPORT_FILE, Fact, ReportPage, number_text, write_report
from nnunet.evaluation.tables import read_class_names, read_class_predictions
from scripts.crossval_folds import fold_metrics
from scripts.evaluation_page import PREDICTIONS_FILE, print_result
from scripts.final_validation import (
    FOLDER,
    ScoredCases,
    ValidationScores,
    collapse_notes,
    score_cases,
    surface_dice,
    write_tables,
)
from scripts.fold_data import read_fold
from scripts.members import METRICS_FILE, fold_folder
from scripts.model_postprocessing import FILE, describe_steps
from scripts.model_run import PredictionRow, volumes_ml
from scripts.prepared_prediction import draw_extremes, mask_file, native_reference, rules_of, score_masks
from scripts.run_options import RunOptions
from utils.contracts import Plan, PreprocessedCase
from utils.errors import DatasetError
from utils.run_log import RUN_SUMMARY, RunLog, progress, say
from utils.storage import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledCase:
    """A case that a fold held out: its predicted mask, and the class that was predicted with it."""

    case: PreprocessedCase
    fold: int
    mask: Path
    class_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The held-out cases of the folds, each once, sorted by name; `num_folds` counts all of the dataset."""

    plan: Plan
    cases: tuple[PooledCase, ...]
    folds: tuple[int, ...]
    num_folds: int

    def masks(self) -> Iterator[MasksOfCase]:
        """The masks of the cases with a reference, one after the other."""
        for pooled in self.cases:
            reference = native_reference(pooled.case)
            if reference is not None:
                yield MasksOfCase(
                    case_id=pooled.case.case_id,
                    truth=reference,
                    predicted=read_label_volume(pooled.mask).voxels,
                )


def pool_scores(options: RunOptions, folds: Sequence[int], run_log: RunLog) -> Path:
    """Score the held-out cases of these folds together; write tables, JSON, report, postprocessing.json."""
    started = time.perf_counter()
    pool = gather(options, folds)
    scored = score_pool(pool)
    cases = tuple(pooled.case for pooled in pool.cases)
    scores = score_cases(scored, cases, pool.plan, options.seed)
    write_tables(options.results / FOLDER, scored, pool.plan)
    found = _postprocessing(options, pool, scores)
    metrics = {fold: fold_metrics(options.results, fold) for fold in folds}
    record = scores.record() | {
        "folds": {fold: _fold_record(of_fold) for fold, of_fold in metrics.items()},
        "num_folds": pool.num_folds,
        "postprocessing": found,
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_json(options.results / METRICS_FILE, record)
    if scores.segmentation:
        run_log.log(RUN_SUMMARY, {"final/dsc": scores.segmentation.foreground_mean_dice})
    page = ReportPage(
        title=f"Cross-validation of {pool.plan.dataset}",
        facts=_facts(options, pool, metrics, found),
        segmentation=scores.segmentation,
        classification=scores.classes,
        volume_auroc=scores.volume_auroc,
        volume=scores.volume,
        notes=(*_missing_notes(pool), *collapse_notes(scores.classes)),
        overlays=draw_extremes(scored.overlaps, cases, pool.plan),
    )
    write_report(options.results / REPORT_FILE, page)
    print_result(scores.segmentation, scores.classes, options.results / REPORT_FILE)
    return options.results / REPORT_FILE


def gather(options: RunOptions, folds: Sequence[int]) -> Pool:
    """The held-out cases of these folds, with what their folds predicted.

    DatasetError where two folds hold out the same case, or where a prediction is missing.
    """
    pooled: dict[str, PooledCase] = {}
    plan, num_folds = None, 0
    for fold in folds:
        data = read_fold(replace(options, fold=fold))
        plan, num_folds = data.plan, len(data.folds)
        folder = fold_folder(options.results, fold) / FOLDER
        classes = _classes(folder / PREDICTIONS_FILE, data.plan)
        for case in data.validation:
            if case.case_id in pooled:
                raise DatasetError(
                    f"Case {case.case_id} is held out by the folds {pooled[case.case_id].fold} and {fold}, "
                    "and would count twice. Correct splits_final.json."
                )
            mask = mask_file(folder, case)
            if not mask.is_file():
                raise DatasetError(
                    f"{mask} is missing, though fold {fold} is finished. Run main.py --exec_mode evaluate "
                    f"--fold {fold} --results {folder.parent} to predict it again."
                )
            pooled[case.case_id] = PooledCase(
                case=case, fold=fold, mask=mask, class_probs=classes.get(case.case_id, ())
            )
    if plan is None:
        raise DatasetError(f"{options.results} has no finished fold.")
    cases = tuple(pooled[name] for name in sorted(pooled))
    return Pool(plan=plan, cases=cases, folds=tuple(folds), num_folds=num_folds)


def score_pool(pool: Pool) -> ScoredCases:
    """A row for every case, and the overlap of each that has a reference."""
    scored = ScoredCases()
    for pooled in progress(pool.cases, total=len(pool.cases), label="Score"):
        case = pooled.case
        mask = read_label_volume(pooled.mask).voxels
        volumes = volumes_ml(mask, case.footprint.native_spacing_mm, pool.plan)
        scored.rows.append(
            PredictionRow(case_id=case.case_id, class_probs=pooled.class_probs, volumes_ml=volumes)
        )
        reference = native_reference(case)
        if reference is None:
            continue
        masks = MasksOfCase(case_id=case.case_id, truth=reference, predicted=mask)
        overlap = score_masks(case, masks, pool.plan, pooled.mask)
        scored.overlaps.append(overlap)
        scored.surfaces.append(surface_dice(case, masks, overlap, pool.plan))
    return scored


def write_postprocessing(path: Path, pool: Pool, networks: Sequence[str]) -> Postprocessing:
    """Find what helps on these cases, write it for the models with these weights, and return it."""
    found = replace(find_postprocessing(pool.masks, rules_of(pool.plan)), networks=tuple(networks))
    write_json(path, found)
    say(
        f"Postprocessing keeps the {describe_steps(found.steps)}: Dice {number_text(found.dice_before, 4)} "
        f"becomes {number_text(found.dice_after, 4)}. {path}"
        if found.steps
        else f"Postprocessing: no component is removed, for the Dice would not rise. {path}"
    )
    return found


def fold_networks(results: Path, folds: Sequence[int]) -> tuple[str, ...]:
    """The hashes of the folds' validated weights; none where a fold was scored before they were noted."""
    noted = [str(network) for fold in folds if (network := fold_metrics(results, fold).get("network"))]
    return tuple(noted) if len(noted) == len(folds) else ()


def fold_line(fold: int, metrics: Mapping[str, Any]) -> str:
    """What a finished fold scores, in one line."""
    parts = []
    if metrics["dsc_mean"] is not None:
        parts.append(f"Dice {metrics['dsc_mean']:.3f} over {metrics['num_cases']} cases")
    classes = metrics["classification"]
    if classes is not None and classes["macro_f1"] is not None:
        parts.append(f"macro-F1 {classes['macro_f1']:.3f} over {classes['num_cases']}")
    return f"Fold {fold}: {', '.join(parts) or 'nothing to score'}"


def _classes(table: Path, plan: Plan) -> dict[str, tuple[float, ...]]:
    """Class probabilities by case; empty where the model predicts no class."""
    if plan.num_classes < 2 or not table.is_file() or not read_class_names(table):
        return {}
    found = read_class_predictions(table, plan.class_names)
    return {
        case_id: tuple(probs.tolist())
        for case_id, probs in zip(found.case_ids, found.class_probs, strict=True)
    }


def _postprocessing(options: RunOptions, pool: Pool, scores: ValidationScores) -> Postprocessing | None:
    """None where no case has a mask to be better or worse than."""
    if scores.segmentation is None:
        return None
    return write_postprocessing(options.results / FILE, pool, fold_networks(options.results, pool.folds))


def _fold_record(metrics: Mapping[str, Any]) -> dict[str, Any]:
    classes = metrics["classification"]
    return {
        "dsc_mean": metrics["dsc_mean"],
        "num_cases": metrics["num_cases"],
        "macro_f1": None if classes is None else classes["macro_f1"],
        "checkpoint": metrics["checkpoint"],
    }


def _facts(
    options: RunOptions, pool: Pool, metrics: Mapping[int, Mapping[str, Any]], found: Postprocessing | None
) -> tuple[Fact, ...]:
    facts = [
        Fact(name="Dataset", value=pool.plan.dataset),
        Fact(name="Configuration", value=pool.plan.configuration),
        Fact(name="Cases, each predicted by the fold that held it out", value=str(len(pool.cases))),
        *(Fact(name=f"Fold {fold}", value=fold_line(fold, of_fold)) for fold, of_fold in metrics.items()),
        Fact(name="Mirroring at test time", value="yes" if options.inference.tta else "no"),
        Fact(name="Class probabilities of", value=options.inference.classifier),
    ]
    if found is not None:
        value = f"{describe_steps(found.steps)}; Dice {number_text(found.dice_before)} without it, "
        facts.append(Fact(name="Postprocessing", value=f"{value}{number_text(found.dice_after)} with it"))
    return tuple(facts)


def _missing_notes(pool: Pool) -> tuple[str, ...]:
    missing = sorted(set(range(pool.num_folds)) - set(pool.folds))
    if not missing:
        return ()
    return (f"Fold {', '.join(map(str, missing))} is not finished; its cases are not among these.",)
