"""What makes a resumed run equal to one that was never interrupted; on the CPU bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, final

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from nnunet.options import OptimiserOptions
from nnunet.training.optimisers import optimiser_name, reset_rates
from utils.errors import DatasetError
from utils.seeding import seed_for


class Stateful(Protocol):
    """A loader that knows its position."""

    def state_dict(self) -> dict[str, Any]:
        """The position in plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind that position."""
        ...


@final
class Resumption(lightning.Callback):
    """Keeps the loader's position in every checkpoint, and starts each epoch with a random stream of its own.

    Lightning saves the position too, but restores it only in the middle of an epoch: after a whole one it
    would show the first epoch's patches again. Torch's generator (dropout) it does not save at all.
    """

    def __init__(self, loader: Stateful, seed: int, optimiser: OptimiserOptions, patience: int) -> None:
        self.loader = loader
        self.seed = seed
        self.optimiser = optimiser
        self.patience = patience  # in validations

    def state_dict(self) -> dict[str, Any]:
        """The loader's position."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Send the loader to the saved position; DatasetError if its layout has changed."""
        self.loader.load_state_dict(state_dict)

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Refuse another optimiser, and an end that lies behind the checkpoint."""
        name = optimiser_name(checkpoint["optimizer_states"][0])
        if name != self.optimiser.optimizer:
            raise DatasetError(
                f"The checkpoint was trained with --optimizer {name}, this run has --optimizer "
                f"{self.optimiser.optimizer}. Resume with {name}, or train into another results folder."
            )
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if trainer.max_epochs is not None and done > trainer.max_epochs:
            raise DatasetError(
                f"The checkpoint has {done} epochs behind it, this run ends after --epochs "
                f"{trainer.max_epochs}. Resume with more than {done} to go on, or with {done} for the final "
                "validation alone."
            )
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                _move(checkpoint["callbacks"].get(callback.state_key), Path(callback.dirpath))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """A resume with other rates, another momentum or patience means it."""
        reset_rates(trainer.optimizers[0], self.optimiser)
        for callback in trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping):
                callback.patience = self.patience

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Seed torch by run, epoch and rank, so that no generator's state has to be saved."""
        torch.manual_seed(seed_for(self.seed, "torch", trainer.current_epoch, trainer.global_rank))


def _move(state: dict[str, Any] | None, folder: Path) -> None:
    """Let the saved `state` of a ModelCheckpoint name the files in `folder`, where they lie now.

    Lightning keeps absolute paths; for a results folder that was moved it would forget the best score.
    """
    if not state:
        return
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if state.get(name):
            state[name] = str(folder / Path(state[name]).name)
    state["best_k_models"] = {
        str(folder / Path(path).name): score for path, score in state["best_k_models"].items()
    }
    state["dirpath"] = str(folder)
