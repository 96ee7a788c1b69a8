"""One epoch over batches of which some hold copies that do not count; alone, or as one process of several."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from nnunet.losses.classification import CrossEntropy
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import OptimiserOptions, TrainingOptions
from nnunet.training.epoch_report import EpochReport
from nnunet.training.module import ModuleSettings, MultiTaskModule
from nnunet.training.trainer import Machine, build_trainer, check_ranks
from tests.conftest import PLAN
from utils.contracts import Batch
from utils.run_log import RunLog, read_log


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRun:
    """What an epoch reported, and the loss of each batch by itself, which does not change: the rate is 0."""

    reported: dict[str, Any]
    losses: list[float]


@final
class CountedBatches:
    """Batches of two, of which so many count: 2, 1 or 0."""

    def __init__(self, counted: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.waited_seconds = 0.0
        self.batches = [
            Batch(
                image=torch.randn(2, 1, *PLAN.patch, generator=generator),
                label=(torch.randint(0, 3, (2, 1, *PLAN.patch), generator=generator, dtype=torch.int16),),
                class_target=torch.tensor([0, 1]),
                case_weights=(torch.arange(2) < number).float(),
                case_ids=(f"{seed}_{step}_a", f"{seed}_{step}_b"),
                num_counted=number,
            )
            for step, number in enumerate(counted)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def run_epoch(counted: list[int], results: Path, *, rank: int = 0, world_size: int = 1) -> CountedRun:
    """Train one epoch with learning rate 0 on batches of which `counted` cases count."""
    torch.manual_seed(0)
    architecture = Architecture(branch="bottleneck:dropout=0.0")  # keeps nothing from step to step
    loss = MultiTaskLoss(
        CrossEntropy(weights="none").build((1, 1)),
        SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
        class_loss_weight=0.3,
        lesion_free_weight=0.25,
    )
    network = MultiTaskUNet(PLAN, architecture)
    settings = ModuleSettings(
        optimiser=OptimiserOptions(learning_rate=0.0, ema=0.0),
        window=WindowRule(patch=PLAN.patch),
        total_steps=len(counted),
    )
    loader = CountedBatches(counted, seed=rank)
    with torch.no_grad():
        losses = [float(loss(network(batch.image), batch).total) for batch in loader]
    module = MultiTaskModule(network, loss, PLAN, architecture, settings)
    machine = Machine(device="cpu", gpus=world_size)
    # Every process writes its own log here, to compare what each of them reports.
    with RunLog(results / "logs.json") as run_log:
        options = TrainingOptions(epochs=1, save_ckpt=False)
        trainer = build_trainer(options, results, machine, 12.0, [EpochReport(PLAN, run_log, loader)])
        check_ranks(trainer, rank=rank, world_size=world_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, loader)
    (reported,) = [line["data"] for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return CountedRun(reported=reported, losses=losses)


def main(results: Path, meeting_point: Path, counted: list[int]) -> None:
    """Run as one process of a world: RANK and WORLD_SIZE say which."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world_size
    )
    run = run_epoch(counted, results, rank=rank, world_size=world_size)
    (results / "run.json").write_text(json.dumps({"reported": run.reported, "losses": run.losses}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])
