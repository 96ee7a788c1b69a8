"""The story of inference: raw scans, a preprocessed folder, or the validation cases of a fold."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from scripts.run_start import tell_single_process
from utils.command import run_command
from utils.errors import UserError
from utils.run_log import RunLog, say

DESCRIPTION = (
    "Predict masks, classes and volumes with a trained checkpoint; with --exec_mode evaluate, score it."
)


def run(options: RunOptions) -> Path:
    """Raw scans where `--input` is given, else preprocessed cases; returns the folder of the predictions."""
    tell_single_process(options)
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
    if options.shard is not None:
        raise UserError("--shard is for --exec_mode predict: scores belong to all cases together.")
    checkpoint = options.ckpt_path or find_checkpoint(options.store)
    with RunLog(options.results / options.logname) as run_log:
        return validate_fold(options, read_fold(options), checkpoint, run_log)


def _predict_preprocessed(options: RunOptions) -> Path:
    from nnunet.evaluation.bootstrap import Resampling
    from nnunet.evaluation.summary import summarise_segmentation, write_summaries
    from scripts.class_output import write_class_output
    from scripts.evaluation_page import PREDICTIONS_FILE, print_result
    from scripts.fold_data import cases_to_predict, refuse_other_preparation
    from scripts.model_run import open_model, prediction_row, write_predictions_table
    from scripts.prediction_shard import PredictionShard
    from scripts.prepared_prediction import predict_prepared, score_answer, score_classes, write_mask
    from utils.prepared_folder import read_plan
    from utils.storage import write_array

    shard = PredictionShard.parse(options.shard)
    model = open_model(options)
    plan = model.model.plan
    cases = cases_to_predict(options)[: options.test_limit]
    # Cases of test/ never trained; those of a fold may have, if it is another than the model's.
    model.refuse_training_cases([case.case_id for case in cases])
    folder_of_cases = cases[0].image.parent
    refuse_other_preparation(plan, read_plan(folder_of_cases), folder_of_cases)
    tta = "_tta" if options.inference.tta else ""
    name = f"preds_task_{Path(options.task).name}_dim_{options.dim}_fold_{options.fold}{tta}"
    folder = options.output or options.results / name
    rows, overlaps = [], []
    for answer in predict_prepared(model, shard.share_of(cases, lambda case: case.case_id)):
        write_mask(folder, answer)
        if options.save_preds:
            write_array(folder / "npy" / f"{answer.case.case_id}.npy", answer.mask.transpose())
        rows.append(
            prediction_row(answer.prediction, answer.mask, answer.case.footprint.native_spacing_mm, plan)
        )
        # A part is not scored: its summary would stand in the folder for the whole.
        if shard.is_whole and (overlap := score_answer(answer, plan, folder)):
            overlaps.append(overlap)
    table = shard.file_of(folder / PREDICTIONS_FILE)
    write_predictions_table(table, rows, plan)
    write_class_output(options.class_output or folder, rows, plan, shard)
    if overlaps:
        resampling = Resampling(seed=options.seed)
        write_summaries(folder, overlaps)
        classes = score_classes(cases, [row.class_probs for row in rows], plan, resampling)
        print_result(
            summarise_segmentation(overlaps, resampling=resampling), classes, folder / "summary.json"
        )
    say(f"{len(rows)} masks and {table.name} in {folder}")
    return folder


def main() -> None:
    """Run from the command line."""
    command = read_command(sys.argv[1:], program="inference.py", description=DESCRIPTION)
    options = command.options
    if options.exec_mode == "train" and "exec_mode" in command.origins:
        raise UserError("scripts/inference.py predicts. To train use scripts/train.py or main.py.")
    if options.exec_mode == "evaluate":
        evaluate(options)
    else:
        run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
