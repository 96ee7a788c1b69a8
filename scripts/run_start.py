"""What a training may start from: contradictions, told before a case is read."""

from __future__ import annotations

from scripts.class_recipes import FINE_TUNING
from scripts.run_options import RunOptions
from utils.errors import UserError


def refuse_contradictory_start(options: RunOptions) -> None:
    """UserError for two starting points, or for none where frozen parts or a recipe need one."""
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
