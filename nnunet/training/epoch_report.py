"""One line per epoch for people, one DLLogger line per epoch for machines."""

from __future__ import annotations

import time
from typing import Any, Protocol, final

import pytorch_lightning as lightning
import torch

from nnunet.training.module import MultiTaskModule
from utils.contracts import Plan
from utils.run_log import RunLog, say
from utils.usage import peak_resident_bytes

COLLAPSE_ADVICE = (
    "The classifier does not tell cases apart. If this stays for many epochs, try a --batch_size above 8, "
    "--balance_classes, a larger --class_loss_weight, --branch roi_pooled, or two stages: --learn "
    "segmentation first, then --ckpt_path with it, --freeze backbone and a larger --head_learning_rate."
)
RECOVERED = "The classes are told apart again."
UNITS = {"speed/patches_per_s": "patches/s", "speed/waiting_percent": "%", "epoch_s": "s", "train_s": "s"}


class Timed(Protocol):
    """A loader that knows how long it was waited for."""

    waited_seconds: float


@final
class EpochReport(lightning.Callback):
    """Measures the epoch's speed and reports every metric under one name and one unit."""

    def __init__(self, plan: Plan, run_log: RunLog, loader: Timed) -> None:
        self.plan = plan
        self.run_log = run_log
        self.loader = loader
        self._started = self._train_seconds = self._waited_before = 0.0
        self._patches = 0
        self._validated = False
        self._total_train_seconds = 0.0
        self._is_collapsed = False

    def state_dict(self) -> dict[str, Any]:
        """The training time so far, for a resume."""
        return {"train_seconds": self._total_train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Carry the training time on."""
        self._total_train_seconds = state_dict["train_seconds"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Declare the units once."""
        for metric, unit in UNITS.items():
            self.run_log.metadata(metric, {"unit": unit})

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Say how much memory the training took."""
        if not trainer.is_global_zero:
            return
        parts = [f"{peak_resident_bytes() / 1e9:.1f} GB of this machine's (mapped volumes included)"]
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU's by torch")
        say(f"Peak memory: {', '.join(parts)}.")

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.perf_counter()
        self._train_seconds = 0.0
        self._waited_before = self.loader.waited_seconds
        self._patches = 0
        self._validated = False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ANN001, ARG002
        """Count this rank's patches, without the copies that fill its last batch."""
        self._patches += batch.num_counted

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Validation does not count as training time."""
        self._stop_clock()
        self._validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log and say what the epoch brought."""
        self._stop_clock()
        waited = self.loader.waited_seconds - self._waited_before
        own_patches = torch.tensor(self._patches, device=pl_module.device)
        patches = int(trainer.strategy.reduce(own_patches, reduce_op="sum"))
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            # Lightning keeps the last validation's numbers; an epoch without one must not repeat them.
            if self._validated or not name.startswith("val/")
        }
        metrics["speed/patches_per_s"] = patches / max(self._train_seconds, 1e-9)
        metrics["speed/waiting_percent"] = 100 * waited / max(self._train_seconds, 1e-9)
        self._total_train_seconds += self._train_seconds
        metrics["train_s"] = self._total_train_seconds
        metrics["epoch_s"] = time.perf_counter() - self._started
        metrics |= learning_rates(trainer.optimizers[0])
        self.run_log.log([trainer.current_epoch], metrics)
        self.run_log.flush()
        if trainer.is_global_zero:
            say(epoch_line(trainer.current_epoch + 1, trainer.max_epochs, metrics, self.plan))
            if self._validated and isinstance(pl_module, MultiTaskModule) and pl_module.scores:
                self._tell_collapse(pl_module.scores.collapse or "")

    def _tell_collapse(self, reason: str) -> None:
        """Say it once when the classes collapse, and once when they have recovered."""
        if bool(reason) != self._is_collapsed:
            say(f"Warning: {reason}. {COLLAPSE_ADVICE}" if reason else RECOVERED)
        self._is_collapsed = bool(reason)

    def _stop_clock(self) -> None:
        if not self._train_seconds:
            if torch.cuda.is_available():
                # Once per epoch: without it the clock would miss the steps still queued on the device.
                torch.cuda.synchronize()
            self._train_seconds = time.perf_counter() - self._started


def learning_rates(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of the network, or of the branch that learns alone; and of a branch with another rate."""
    rates = {group["part"]: group["lr"] for group in optimiser.param_groups}
    first = next(iter(rates.values()))
    found = {"learning_rate": first}
    if rates.get("branch", first) != first:
        found["learning_rate_head"] = rates["branch"]
    return found


def epoch_line(epoch: int, epochs: int | None, metrics: dict[str, float], plan: Plan) -> str:
    """What a person wants to know about an epoch, on one line."""
    parts = [f"epoch {epoch}/{epochs}", f"loss {metrics.get('train/loss', float('nan')):.3f}"]
    if plan.num_classes > 1:
        parts[-1] += (
            f" (seg {metrics['train/loss_segmentation']:.3f}, class {metrics['train/loss_class']:.3f})"
        )
    if "val/loss" in metrics:
        parts.append(f"val loss {metrics['val/loss']:.3f}")
    if dice := _dice(metrics, plan):
        parts.append(dice)
    if "val/macro_f1" in metrics:
        parts.append(
            f"macro-F1 {metrics['val/macro_f1']:.3f} (constant {metrics['val/macro_f1_constant']:.3f})"
        )
    parts.append(f"{metrics['speed/patches_per_s']:.1f} patches/s")
    parts.append(f"waiting for data {metrics['speed/waiting_percent']:.1f} %")
    parts.append(f"{metrics['epoch_s']:.1f} s")
    return " | ".join(parts)


def _dice(metrics: dict[str, float], plan: Plan) -> str:
    """Dice of every region or label on the grid that the best epoch is chosen by; nothing without Dice."""
    kinds = {"val/dsc_original": "Dice on the original grid", "val/dsc": "Dice"}
    kind = next((kind for kind in kinds if kind in metrics), None)
    if kind is None:
        return ""
    values = (f"{name} {metrics[f'{kind}_{i}']:.3f}" for i, name in enumerate(plan.target_names, start=1))
    return f"{kinds[kind]} {', '.join(values)}"
