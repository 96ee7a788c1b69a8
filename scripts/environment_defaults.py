"""Environment variables of other multi-task nnU-Nets, and what they mean here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.options import HELP_FLAGS, OptionRules, parse

LOSS_WEIGHT = "NNUNETV2_MT_LOSS_WEIGHT"
CHECKPOINT = "NNUNETV2_PRE_CHECKPOINT_PATH"
NUM_CLASSES = "NNUNETV2_MT_NUM_CLS"
OPTIONS: Mapping[str, str] = {"class_loss_weight": LOSS_WEIGHT, "ckpt_path": CHECKPOINT}
# nnU-Net's folders: what preprocess.py reads and writes, what main.py and its like read and write.
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
RAW_FOLDERS = OptionRules(environment={"data": RAW, "results": PREPROCESSED})
RUN_FOLDERS: Mapping[str, str] = {"data": PREPROCESSED, "results": RESULTS}


def with_folders(rules: OptionRules) -> OptionRules:
    """The rules with nnU-Net's folders, where their variables are set, for --data and --results of a run."""
    return replace(rules, environment={**RUN_FOLDERS, **rules.environment})


def with_environment(argv: Sequence[str], rules: OptionRules) -> OptionRules:
    """The rules with the variables that count for this command: they are about training alone.

    A checkpoint to start from is left aside where the run goes on from its own. UserError for a weight that
    is no number.
    """
    wanted = {name: variable for name, variable in OPTIONS.items() if os.environ.get(variable)}
    if not wanted or HELP_FLAGS.intersection(argv):
        return rules
    options = parse(RunOptions, argv, program="main.py", description="", rules=rules)
    if options.exec_mode != "train" or options.benchmark:
        return rules
    if options.training.resume_training:
        wanted.pop("ckpt_path", None)
    if "class_loss_weight" in wanted:
        _number(LOSS_WEIGHT, float)
    return replace(rules, environment={**rules.environment, **wanted})


def refuse_other_class_count(plan: Plan) -> None:
    """DatasetError where NNUNETV2_MT_NUM_CLS is set and the dataset has another number of classes."""
    if os.environ.get(NUM_CLASSES) and (wanted := _number(NUM_CLASSES, int)) != plan.num_classes:
        raise DatasetError(
            f"{NUM_CLASSES} is {wanted:g}, but {plan.dataset} has {plan.num_classes} classes"
            f"{': ' + ', '.join(plan.class_names) if plan.class_names else ''}. The number comes from the "
            "dataset here: unset the variable, or choose the dataset it was meant for."
        )


def _number(variable: str, kind: type[int] | type[float]) -> float:
    text = os.environ[variable]
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"The environment variable {variable} should be {what}, got {text!r}.") from error
