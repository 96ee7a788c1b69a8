"""The Lightning module: one step of training, one volume of validation, and nothing else."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nnunet.inference.placement import home_of
from nnunet.inference.sliding_window import WindowRule, predict_volume
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import OptimiserOptions
from nnunet.training.checkpoint import MODEL_KEY, model_card, refuse_other_model
from nnunet.training.clock import RunClock
from nnunet.training.compilation import compiled_or_plain
from nnunet.training.learning_parts import learning_names
from nnunet.training.optimisers import (
    build_optimiser,
    build_schedule,
    parameter_groups,
    regrouped,
    set_learning_rate,
)
from nnunet.training.validation import (
    CaseResult,
    OriginalDice,
    ValidationScores,
    case_result,
    pool_results,
)
from utils.contracts import Batch, Plan
from utils.errors import DatasetError

LEARNING_KEY = "learning"  # the names of the weights that the optimiser moves


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSettings:
    """What the module needs beside network and loss."""

    optimiser: OptimiserOptions
    window: WindowRule
    total_steps: int
    training_cases: tuple[str, ...] = ()  # named in the checkpoint
    time_budget: float | None = None  # minutes
    compile: bool = False
    original_dice: OriginalDice | None = None  # scores validation volumes on the grid before resampling too


@final
class MultiTaskModule(lightning.LightningModule):
    """Trains a network with a loss; validates whole volumes; keeps its own schedule and weight average."""

    def __init__(
        self,
        network: MultiTaskUNet,
        loss: MultiTaskLoss,
        plan: Plan,
        architecture: Architecture,
        settings: ModuleSettings,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.plan = plan
        self.architecture = architecture
        self.settings = settings
        self.schedule = build_schedule(settings.optimiser)
        self.averaged = _averaged(network, settings.optimiser.ema)
        self.scores: ValidationScores | None = None
        self._results: list[CaseResult] = []
        # Only a compiled function is kept: the network itself would be stored twice under two names.
        self._compiled = compiled_or_plain(network) if settings.compile else None
        self.clock = RunClock(total_steps=settings.total_steps, time_budget=settings.time_budget)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A group per part; the schedule is set before each step instead of by a Lightning scheduler."""
        # A fused step would undo the loss scale of float16 by itself, after the gradients were clipped.
        fused = self.trainer.precision != "16-mixed"
        groups = parameter_groups(self.network, self.loss)
        return build_optimiser(groups, self.settings.optimiser, fused=fused)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002
    ) -> None:
        """Clip by norm here: Lightning refuses fused optimisers, even where no loss scale is in play."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def on_fit_start(self) -> None:
        """Start the clock of the time budget."""
        self.clock.start()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Set the learning rate of this step, and tell the loss how far the training is."""
        self.loss.progress = self.clock.progress(self.global_step)
        factor = self.schedule.factor(self.loss.progress, self.global_step)
        set_learning_rate(self.trainer.optimizers[0], factor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of one batch; sums over the counted cases stay on the device until the epoch ends."""
        output = (self._compiled or self.network)(batch.image, guide_of(self.network, batch))
        terms = self.loss(output, batch)
        means = {
            "train/loss": terms.total.detach(),
            "train/loss_segmentation": terms.segmentation,
            "train/loss_class": terms.classification,
        }
        means |= {f"train/weight_{task}": weight for task, weight in self.loss.task_weights().items()}
        for name, value in means.items():
            # A batch of copies alone is logged too: every rank takes part in reducing every name.
            self.log(
                name,
                value if batch.num_counted else torch.zeros_like(value),
                on_step=False,
                on_epoch=True,
                # Lightning averages the number of cases over the ranks and rounds it down: keep it whole.
                batch_size=batch.num_counted * self.trainer.world_size,
                sync_dist=True,
            )
        return terms.total

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Update the weight average."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        """Forget the cases of the epoch before."""
        self._results = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Predict one whole volume and keep its score."""
        network = self.network if self.averaged is None else self.averaged
        home = home_of(tuple(batch.image.shape[1:]), self.loss.segmentation.coding, self.device)
        loss = self.loss
        if home != self.device:
            batch, loss = batch.to(home), deepcopy(loss).to(home)
            torch.cuda.synchronize()  # what is copied to the host is there only then
        output = predict_volume(network, batch.image, self.settings.window, device=self.device)
        self._results.append(case_result(output, batch, loss, self.settings.original_dice))

    def on_validation_epoch_end(self) -> None:
        """Pool the cases of all ranks and log their scores."""
        results = pool_results(self._results)
        self.scores = ValidationScores.from_results(
            results,
            self.plan,
            self.loss.class_loss_weight,
            segmentation_learns=self.loss.segmentation_learns,
        )
        for name, value in self.scores.metrics().items():
            self.log(name, value, rank_zero_only=False, batch_size=len(results))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the network, what of it learns, and the time spent."""
        checkpoint[MODEL_KEY] = model_card(self.plan, self.architecture, self.settings.training_cases)
        checkpoint[LEARNING_KEY] = learning_names(self.network)
        checkpoint["train_seconds"] = self.clock.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another model or other frozen parts, then carry the earlier run's time on."""
        refuse_other_model(checkpoint, model_card(self.plan, self.architecture), self.state_dict().keys())
        ours = learning_names(self.network)
        if checkpoint.get(LEARNING_KEY, ours) != ours:
            raise DatasetError(
                "In the run that wrote the checkpoint other parts of the network learned. Resume with its "
                "--learn and --freeze, or start anew from its weights: --ckpt_path without --resume_training."
            )
        groups = parameter_groups(self.network, self.loss)
        checkpoint["optimizer_states"] = [
            regrouped(state, groups) for state in checkpoint["optimizer_states"]
        ]
        self.clock.earlier_seconds = float(checkpoint["train_seconds"])


def guide_of(network: MultiTaskUNet, batch: Batch) -> Tensor | None:
    """The finest target, for a network whose branch may look at it in training."""
    return batch.label[0] if network.takes_guide and batch.label else None


def _averaged(network: MultiTaskUNet, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return averaged.requires_grad_(False).eval()  # noqa: FBT003 - torch's own signature
