"""Predicted classes beside the masks, or in a folder of their own, as the challenge asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet.evaluation.class_outputs import SUBTYPE_TABLE, ClassAnswer, write_class_files
from scripts.model_run import PredictionRow
from scripts.prediction_shard import PredictionShard
from utils.contracts import Plan
from utils.run_log import say


def write_class_output(
    folder: Path, rows: Sequence[PredictionRow], plan: Plan, shard: PredictionShard
) -> None:
    """Write subtype_results.csv and <case>_classification.json; a note where the model predicts no class.

    A part of the cases has a table of its own, named as the other files of the part.
    """
    answers = [
        ClassAnswer(case_id=row.case_id, class_probs=row.class_probs, mask_ending=row.mask_ending)
        for row in rows
        if row.class_probs
    ]
    table = shard.file_of(Path(SUBTYPE_TABLE)).name
    if answers:
        write_class_files(folder, answers, plan.class_names, table=table)
        say(f"Classes of {len(answers)} cases in {folder / table}")
    elif plan.num_classes == 0:
        say(f"The model predicts no class: there is no {table}.")
