"""The story of inference: raw scans, a preprocessed folder, or the validation cases of a fold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.run_options import AUTO, RunOptions
from scripts.run_recipes import read_command
from scripts.run_start import refuse_crossval, tell_single_process
from utils.command import run_command
from utils.errors import UserError
from utils.run_log import RunLog, say

if TYPE_CHECKING:
    from nnunet.evaluation.bootstrap import Resampling
    from nnunet.evaluation.classification import ClassificationSummary
    from nnunet.evaluation.overlap import CaseOverlap
    from scripts.ensemble import Ensemble

DESCRIPTION = (
    "Predict masks, classes and volumes with a trained checkpoint; with --exec_mode evaluate, score it."
)


def run(options: RunOptions) -> Path:
    """Raw scans where `--input` is given, else preprocessed cases; returns the folder of the predictions."""
    tell_single_process(options)
    refuse_crossval(options)
    if options.input is not None:
        from scripts.predict_scans import predict_scans

        return predict_scans(options)
    return _predict_preprocessed(options)


def evaluate(options: RunOptions) -> Path:
    """Score a checkpoint on the validation cases of the fold; returns the report."""
    from scripts.final_validation import validate_fold
    from scripts.fold_data import read_fold, refuse_all_cases
    from scripts.model_run import find_checkpoint

    tell_single_process(options)
    refuse_all_cases(options, "scores the cases that a fold holds out")
    _refuse_unscored(options)
    checkpoint = options.ckpt_path or find_checkpoint(options.store)
    with RunLog(options.results / options.logname) as run_log:
        return validate_fold(options, read_fold(options), checkpoint, run_log)


def _refuse_unscored(options: RunOptions) -> None:
    """UserError for options that change what is predicted: the scores are one model's, of its raw answers."""
    if options.shard is not None:
        raise UserError("--shard is for --exec_mode predict: scores belong to all cases together.")
    _refuse_continued(options)
    given = {
        "--members": options.members,
        "--folds": options.folds,
        "--folds_at_once": options.folds_at_once,
        "--predictor": options.predictor,
        "--postprocessing": options.postprocessing != AUTO,
    }
    if wrong := [name for name, value in given.items() if value]:
        raise UserError(
            f"{', '.join(wrong)}: --exec_mode evaluate scores one model's own answers. Use --exec_mode "
            "predict, which scores prepared cases too, or scripts/crossval.py for all folds."
        )


def _refuse_continued(options: RunOptions) -> None:
    """UserError where prepared cases would be scored in two parts."""
    if options.continue_prediction:
        raise UserError(
            "--continue_prediction goes on with predictions of scans: give them with -i. Prepared cases are "
            "scored together, so all of them are predicted."
        )


def _predict_preprocessed(options: RunOptions) -> Path:
    from nnunet.evaluation.bootstrap import Resampling
    from scripts.class_output import write_class_output
    from scripts.ensemble import ScanAnswer, open_ensemble
    from scripts.evaluation_page import PREDICTIONS_FILE
    from scripts.fold_data import cases_to_predict
    from scripts.model_postprocessing import choose_postprocessing
    from scripts.model_run import prediction_row, write_predictions_table
    from scripts.prediction_arrays import ArrayFiles
    from scripts.prediction_shard import PredictionShard
    from scripts.prepared_prediction import predict_prepared, score_answer, score_classes, write_mask

    _refuse_continued(options)
    shard = PredictionShard.parse(options.shard)
    arrays = ArrayFiles.of(options)
    ensemble = open_ensemble(options)
    plan = ensemble.plan
    cases = cases_to_predict(options)[: options.test_limit]
    # Cases of test/ never trained; those of a fold may have, if it is another than the model's.
    ensemble.refuse_training_cases([case.case_id for case in cases])
    _refuse_other_folder(ensemble, cases[0].image.parent)
    steps = choose_postprocessing(options.postprocessing, ensemble).steps
    tta = "_tta" if options.inference.tta else ""
    name = f"preds_task_{Path(options.task).name}_dim_{options.dim}_fold_{options.fold}{tta}"
    folder = options.output or options.results / name
    rows, overlaps = [], []
    mine = shard.share_of(cases, lambda case: case.case_id)
    for answer in predict_prepared(ensemble.groups[0], mine, steps):
        mask = answer.mask if ensemble.has_masks else None
        if mask is not None:
            write_mask(folder, answer)
            scan_answer = ScanAnswer(prediction=answer.prediction, footprint=answer.case.footprint)
            arrays.write(folder, mask, scan_answer, plan)
            if overlap := score_answer(answer, plan, folder):
                overlaps.append(overlap)
        spacing_mm = answer.case.footprint.native_spacing_mm
        row = prediction_row(ensemble.wanted(answer.prediction), mask, spacing_mm, plan)
        rows.append(replace(row, mask_ending=answer.case.footprint.mask_ending))
    table = shard.file_of(folder / PREDICTIONS_FILE)
    write_predictions_table(table, rows, plan)
    write_class_output(options.class_output or folder, rows, plan, shard)
    # A part is not scored: its summary would stand in the folder for the whole.
    if shard.is_whole:
        resampling = Resampling(seed=options.seed)
        classes = score_classes(cases, [row.class_probs for row in rows], plan, resampling)
        _tell_scores(folder, overlaps, classes, resampling)
    say(f"{len(rows)} {'masks' if ensemble.has_masks else 'classes'} and {table.name} in {folder}")
    return folder


def _tell_scores(
    folder: Path,
    overlaps: Sequence[CaseOverlap],
    classes: ClassificationSummary | None,
    resampling: Resampling,
) -> None:
    """Write and print what there is to score: cases with a mask, cases with a class."""
    from nnunet.evaluation.summary import SUMMARY_FILE, summarise_segmentation, write_summaries
    from scripts.evaluation_page import PREDICTIONS_FILE, print_result

    segmentation, file = None, PREDICTIONS_FILE
    if overlaps:
        write_summaries(folder, overlaps)
        segmentation, file = summarise_segmentation(overlaps, resampling=resampling), SUMMARY_FILE
    if segmentation or classes:
        print_result(segmentation, classes, folder / file)


def _refuse_other_folder(ensemble: Ensemble, folder: Path) -> None:
    """DatasetError where a member needs other volumes than those of a prepared folder."""
    from scripts.fold_data import refuse_other_preparation
    from scripts.stage_notes import refuse_foreign_priors
    from utils.prepared_folder import read_plan

    if len(ensemble.groups) > 1:
        raise UserError(
            "The members need differently prepared volumes, and a preprocessed folder has one kind. Give the "
            "scans themselves with -i."
        )
    refuse_other_preparation(ensemble.plan, read_plan(folder), folder)
    for member in ensemble.second_stages:
        refuse_foreign_priors(ensemble.plan, folder, member.results)


def main() -> None:
    """Run from the command line."""
    command = read_command(sys.argv[1:], program="inference.py", description=DESCRIPTION)
    if command.options.exec_mode == "train" and "exec_mode" in command.origins:
        raise UserError("scripts/inference.py predicts. To train use scripts/train.py or main.py.")
    from scripts.results_folders import own_results

    if command.options.exec_mode == "evaluate":
        evaluate(own_results(command))
    else:
        options = replace(command.options, exec_mode="predict")
        run(own_results(replace(command, options=options)))


if __name__ == "__main__":
    sys.exit(run_command(main))
