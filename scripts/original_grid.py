"""Scores of validation volumes on the grid before resampling (--invert_resampled_y)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from data_preprocessing.restore import cropped_label
from nnunet.evaluation.overlap import evaluate_case
from nnunet.training.validation import OriginalDice
from scripts.prepared_prediction import rules_of
from utils.contracts import Plan, PreprocessedCase
from utils.prepared_folder import ORIGINAL_LABEL, case_file
from utils.storage import read_array


def original_dice_of(cases: Sequence[PreprocessedCase], plan: Plan) -> OriginalDice:
    """Dice per region or label of one of `cases`, against the mask as drawn, cropped but not resampled.

    The probabilities are resampled as for a prediction, on their device; a case without a mask has no Dice.
    """
    known = {case.case_id: case for case in cases}
    rules = rules_of(plan)

    def original_dice(case_id: str, probabilities: Tensor) -> tuple[float, ...] | None:
        case = known[case_id]
        path = case_file(case.image.parent, case_id, ORIGINAL_LABEL)
        if not path.is_file():
            return None
        order = plan.regions_class_order
        predicted = cropped_label(probabilities, case.footprint, regions_class_order=order)
        scored = evaluate_case(case_id, read_array(path)[0], predicted, rules)
        return tuple(structure.dice for structure in scored.structures)

    return original_dice
