"""The Lightning trainer with our callbacks, precision and checkpoint files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy

from nnunet.options import TrainingOptions
from nnunet.precision import half_type
from nnunet.training.checkpoint import AtomicCheckpointIO
from nnunet.training.divergence import Divergence
from nnunet.training.equal_buffers import EqualBuffers
from nnunet.training.portable import PORTABLE_SUFFIX
from utils.errors import EnvironmentFault, UserError
from utils.run_log import say

CHECKPOINT_FOLDER = "checkpoints"
LAST = "last"

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The devices of one run."""

    device: str  # cuda or cpu
    gpus: int = 1  # per node; on the CPU processes
    nodes: int = 1

    @property
    def num_processes(self) -> int:
        """How many train together."""
        return self.gpus * self.nodes


def choose_machine(device: str, gpus: int, nodes: int) -> Machine:
    """`auto` takes CUDA where there is a device; EnvironmentFault if what was asked for is not there.

    `gpus` counts processes where the CPU is asked for by name; where `auto` falls back on it there is one.
    """
    if gpus < 1 or nodes < 1:
        raise UserError(f"--gpus and --nodes should be at least 1, got {gpus} and {nodes}.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = device if device != "auto" else ("cuda" if available else "cpu")
    if chosen == "cuda" and gpus > available:
        raise EnvironmentFault(
            f"--gpus {gpus} were asked for, {available} are visible. Use --device cpu or fewer."
        )
    return Machine(device=chosen, gpus=1 if device == "auto" and chosen == "cpu" else gpus, nodes=nodes)


def precision_of(device: str, *, amp: bool) -> Precision:
    """Lightning's name for the precision: bfloat16 where the device computes it, float16 only on CUDA."""
    if not amp:
        return "32-true"
    kind = half_type(device)
    if kind is None:
        say("This CPU has no bfloat16 arithmetic: --amp has no effect here, float32 is used.")
        return "32-true"
    return "bf16-mixed" if kind == torch.bfloat16 else "16-mixed"


def epochs_of(options: TrainingOptions) -> int:
    """The number of epochs, whichever of its two names was used."""
    return options.epochs if options.max_epochs is None else options.max_epochs


def patience_of(options: TrainingOptions) -> int:
    """The patience in validations, at least one; the option counts epochs."""
    return max(options.patience // options.val_every, 1)


def build_trainer(
    options: TrainingOptions,
    results: Path,
    machine: Machine,
    gradient_clip: float,
    callbacks: Sequence[lightning.Callback],
) -> lightning.Trainer:
    """A trainer that validates after epochs, stops early, and writes its checkpoints atomically.

    What it trained may have diverged: ask `refuse_diverged`.
    """
    # Its greetings and advertisements say nothing about the run.
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return lightning.Trainer(
        accelerator="gpu" if machine.device == "cuda" else "cpu",
        devices=machine.gpus,
        num_nodes=machine.nodes,
        strategy=DDPStrategy(broadcast_buffers=False) if machine.num_processes > 1 else "auto",
        sync_batchnorm=options.sync_batchnorm,
        precision=precision_of(machine.device, amp=options.amp),
        min_epochs=options.min_epochs,
        max_epochs=epochs_of(options),
        check_val_every_n_epoch=1,  # ValidationSchedule decides
        num_sanity_val_steps=0,
        gradient_clip_val=gradient_clip or None,
        callbacks=[*callbacks, *_own_callbacks(options, results)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=results,
        enable_checkpointing=options.save_ckpt,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
        benchmark=machine.device == "cuda",
    )


def refuse_impossible(options: TrainingOptions, machine: Machine, *, norm: str) -> None:
    """UserError for what cannot be trained on `machine`, before a case is read."""
    if options.time_budget is not None and machine.num_processes > 1:
        raise UserError(
            "--time_budget works on one device: several would end at different steps. Use --epochs."
        )
    if options.sync_batchnorm:
        _refuse_impossible_synchronisation(machine, norm)


def _refuse_impossible_synchronisation(machine: Machine, norm: str) -> None:
    if norm != "batch":
        raise UserError(
            f"--sync_batchnorm joins the statistics of --norm batch; --norm {norm} has none that go beyond a "
            "case. Leave one of the two away."
        )
    if machine.num_processes == 1:
        raise UserError(
            "--sync_batchnorm joins the statistics of several GPUs, but --gpus times --nodes is 1: its "
            "batch is the whole one. Leave it away."
        )
    if machine.device == "cpu":
        # torch 2.13: SyncBatchNorm.forward raises for tensors on the CPU, whatever the backend.
        raise UserError(
            "--sync_batchnorm works on GPUs only: PyTorch has no synchronised batch normalisation for the "
            "CPU. Use --norm instance there, or one process with a larger --batch_size."
        )


def check_ranks(trainer: lightning.Trainer, *, rank: int, world_size: int) -> None:
    """EnvironmentFault where the loader's part, `rank` of `world_size`, is not this process's.

    Two processes that read the same part would train on some cases twice and on others never.
    """
    if (trainer.global_rank, trainer.world_size) != (rank, world_size):
        raise EnvironmentFault(
            f"The trainer runs this process as rank {trainer.global_rank} of {trainer.world_size}, but its "
            f"loader was built for rank {rank} of {world_size}. --gpus times --nodes should be the number of "
            "processes, and RANK (torchrun) or SLURM_PROCID (srun) this process's place among them."
        )


def last_checkpoint(results: Path) -> Path:
    """Where the newest checkpoint of a run lies."""
    return results / CHECKPOINT_FOLDER / f"{LAST}.ckpt"


def kept_checkpoints(results: Path) -> list[Path]:
    """The checkpoints that a run has left: the best ones, the newest last, and behind them the last one.

    A model that was imported is one of the best.
    """
    folder = results / CHECKPOINT_FOLDER
    best = [*folder.glob("epoch=*.ckpt"), *folder.glob(f"*{PORTABLE_SUFFIX}")]
    last = last_checkpoint(results)
    return [*sorted(best, key=lambda path: path.stat().st_mtime), *([last] if last.is_file() else [])]


def best_checkpoint(trainer: lightning.Trainer, results: Path) -> Path:
    """The checkpoint with the best `val/score`; the last one where no epoch was validated."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return Path(callback.best_model_path)
    return last_checkpoint(results)


def _own_callbacks(options: TrainingOptions, results: Path) -> list[lightning.Callback]:
    callbacks: list[lightning.Callback] = [EqualBuffers(), Divergence()]
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar(leave=False))
    if options.patience:
        callbacks.append(
            EarlyStopping(
                "val/loss",
                patience=patience_of(options),
                check_on_train_epoch_end=False,
                strict=False,
            )
        )
    if options.save_ckpt:
        folder = results / CHECKPOINT_FOLDER
        callbacks.append(
            ModelCheckpoint(
                folder,
                "epoch={epoch}",
                monitor="val/score",
                mode="max",
                auto_insert_metric_name=False,
                enable_version_counter=False,
                save_on_train_epoch_end=False,
            )
        )
        callbacks.append(
            ModelCheckpoint(folder, LAST, enable_version_counter=False, save_on_train_epoch_end=True)
        )
    return callbacks
