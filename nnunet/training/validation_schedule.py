"""Which epochs are validated, and the end of a run whose time is spent."""

from __future__ import annotations

from typing import Any, final

import pytorch_lightning as lightning

from nnunet.options import TrainingOptions
from nnunet.training.clock import RunClock


@final
class ValidationSchedule(lightning.Callback):
    """Validates every so many epochs, and the last one whatever its number: its weights may be the best.

    Lightning alone would leave an epoch unvalidated in which the time runs out, and the last one of a run
    whose length is no multiple of the interval. Without cases to validate on, no epoch is.
    """

    def __init__(self, options: TrainingOptions, clock: RunClock, *, has_cases: bool = True) -> None:
        self.interval = options.val_every
        self.first_epoch = options.skip_first_n_eval
        self.clock = clock
        self.has_cases = has_cases

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Before the trainer asks for the volumes."""
        if not self.has_cases:
            trainer.limit_val_batches = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Decide for this epoch; the trainer asks when its last step is done."""
        done = trainer.current_epoch + 1
        is_due = done % self.interval == 0 and trainer.current_epoch >= self.first_epoch
        trainer.limit_val_batches = float(self.has_cases and (is_due or done == trainer.max_epochs))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Stop when the time is spent, and validate what there is."""
        if self.clock.is_over():
            trainer.should_stop = True
            trainer.limit_val_batches = float(self.has_cases)
