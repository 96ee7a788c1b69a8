"""What a network remembers of its batches, made equal on all ranks before it is validated."""

from __future__ import annotations

from typing import final

import pytorch_lightning as lightning
import torch


@final
class EqualBuffers(lightning.Callback):
    """Gives every rank the buffers of rank 0, which are those that a checkpoint holds.

    Batch normalisation remembers the statistics of its own rank's batches. Broadcast at every forward pass,
    as DistributedDataParallel can, they would tie together ranks that validate unequal numbers of cases.
    """

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Broadcast the buffers; every rank comes here, whether it has a case to validate or not."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)
