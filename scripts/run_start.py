"""What a run may start from: contradictions, told before a case is read."""

from __future__ import annotations

from scripts.class_recipes import FINE_TUNING
from scripts.run_options import AUTO, RunOptions
from utils.errors import UserError
from utils.run_log import say


def tell_single_process(options: RunOptions) -> None:
    """Say that evaluation and prediction take one process, where more were asked for."""
    if options.gpus * options.nodes > 1:
        say(
            f"--exec_mode {options.exec_mode} runs in one process, on one device; --gpus and --nodes are for "
            "training. --shard 1/2 and --shard 2/2 predict in two."
        )


def refuse_crossval(options: RunOptions) -> None:
    """UserError for an option that is about several trainings, in a command that runs none or one."""
    if options.folds_at_once is not None:
        raise UserError("--folds_at_once is for scripts/crossval.py, which trains several folds.")


def refuse_predicting(options: RunOptions, *, but: str = "") -> None:
    """UserError for options that only a prediction has; `but` names one that this command takes too."""
    given = {
        "--input": options.input,
        "--output": options.output,
        "--class_output": options.class_output,
        "--shard": options.shard,
        "--continue_prediction": options.continue_prediction,
        "--save_preds": options.save_preds,
        "--members": options.members,
        "--folds": options.folds,
        "--predictor": options.predictor,
        "--postprocessing": options.postprocessing != AUTO,
    }
    if wrong := [name for name, value in given.items() if value and name != but]:
        raise UserError(
            f"{', '.join(wrong)}: only a prediction has that. Leave it away, or add --exec_mode predict."
        )


def refuse_contradictory_start(options: RunOptions) -> None:
    """UserError for two starting points, or for none where frozen parts or a recipe need one.

    Also for options that only a prediction has.
    """
    refuse_predicting(options)
    refuse_crossval(options)
    training = options.training
    if training.resume_training:
        if options.ckpt_path is not None:
            raise UserError(
                "--resume_training goes on from the last checkpoint of --results, --ckpt_path starts anew "
                "from other weights. Give one of the two."
            )
        return
    if options.ckpt_path is not None:
        return
    if training.freeze != "none":
        raise UserError(
            f"--freeze {training.freeze} would keep weights that nobody has trained. Give a checkpoint to "
            "start from: --ckpt_path."
        )
    if options.recipe in FINE_TUNING:
        raise UserError(
            f"--recipe {options.recipe} goes on from a trained segmentation. Train one first (--recipe "
            "nnunet --learn segmentation) and give its checkpoint: --ckpt_path."
        )
