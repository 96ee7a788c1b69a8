"""The end of a training whose numbers are no longer finite."""

from __future__ import annotations

import math
from typing import final

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import ModelCheckpoint

from utils.errors import UserError


@final
class Divergence(lightning.Callback):
    """Ends a run whose loss is not finite, and keeps such weights out of its checkpoints.

    Looked at are the mean training loss of an epoch and its validation: with float16 a loss scaler skips
    single steps, and that is no harm. All ranks know both numbers, so they stop together.
    """

    def __init__(self) -> None:
        self.reason = ""  # empty as long as all is finite

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Look at the validation before a checkpoint of the best epoch is written."""
        self._look_at("val/loss", "validation loss", trainer)
        if not self.reason and trainer.callback_metrics.get("val/score") == -math.inf:
            self._stop("the network's output for a validation case is not finite", trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Look at the epoch before the last checkpoint is written."""
        if not self.reason:
            self._look_at("train/loss", "training loss", trainer)

    def _look_at(self, metric: str, name: str, trainer: lightning.Trainer) -> None:
        value = float(trainer.callback_metrics.get(metric, 0.0))
        if not math.isfinite(value):
            self._stop(f"the {name} is {value}", trainer)

    def _stop(self, reason: str, trainer: lightning.Trainer) -> None:
        self.reason = f"In epoch {trainer.current_epoch + 1} {reason}"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_top_k = 0
        trainer.fit_loop.min_epochs = 0
        trainer.should_stop = True


def refuse_diverged(trainer: lightning.Trainer) -> None:
    """UserError that says why, if the training of `trainer` has diverged."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue] - Lightning sets it
        if isinstance(callback, Divergence) and callback.reason:
            raise UserError(
                f"{callback.reason}: the training has diverged, its weights are not kept. Try a lower "
                "--learning_rate, --gradient_clip_val 12, or a run without --amp."
            )
