"""Lightning's view of the loaders; no logic."""

from __future__ import annotations

from typing import final

import pytorch_lightning as lightning

from data_loading.loader import TrainingLoader, VolumeLoader


@final
class DataModule(lightning.LightningDataModule):
    """Hands the two loaders to the trainer; without cases to validate on there is only one."""

    def __init__(self, training: TrainingLoader, validation: VolumeLoader | None) -> None:
        super().__init__()
        self.training = training
        self.validation = validation

    def train_dataloader(self) -> TrainingLoader:
        """Augmented patches."""
        return self.training

    def val_dataloader(self) -> VolumeLoader | list[VolumeLoader]:
        """Whole volumes."""
        return [] if self.validation is None else self.validation
