"""A training that takes a second, shared by the tests of what it leaves behind."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch

from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from nnunet.losses.classification import CrossEntropy
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import OptimiserOptions, TrainingOptions
from nnunet.training.module import ModuleSettings, MultiTaskModule
from nnunet.training.trainer import Machine, build_trainer, last_checkpoint
from utils.contracts import Batch, Plan


@final
class FixedBatches:
    """A loader of the same few batches."""

    def __init__(self, plan: Plan, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(0, 3, (1, 1, *plan.patch), generator=generator, dtype=torch.int16)
        self.batches = [
            Batch(
                image=torch.randn(1, 1, *plan.patch, generator=generator),
                label=(label,),
                class_target=torch.tensor([index % 2]),
                case_weights=None,
                case_ids=(f"case_{index}",),
                num_counted=1,
            )
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TinyRun:
    """A finished training and the checkpoint it wrote."""

    plan: Plan
    module: MultiTaskModule
    results: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, make_plan: Callable[..., Plan]) -> TinyRun:
    """Two epochs of one step, with a weight average that lags far behind the weights."""
    results = tmp_path_factory.mktemp("results")
    plan, architecture = make_plan(), Architecture(num_outputs=1)
    torch.manual_seed(0)
    module = MultiTaskModule(
        MultiTaskUNet(plan, architecture),
        MultiTaskLoss(
            CrossEntropy(weights="none").build((1, 1)),
            SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
            class_loss_weight=0.3,
            lesion_free_weight=0.25,
        ),
        plan,
        architecture,
        ModuleSettings(
            optimiser=OptimiserOptions(ema=0.5), window=WindowRule(patch=plan.patch), total_steps=2
        ),
    )
    trainer = build_trainer(TrainingOptions(epochs=2), results, Machine(device="cpu"), 12.0, [])
    with warnings.catch_warnings():
        # Lightning suggests worker processes and logging intervals, which these batches have no use for.
        warnings.simplefilter("ignore")
        trainer.fit(module, FixedBatches(plan, 1), FixedBatches(plan, 2))
    return TinyRun(plan=plan, module=module, results=results, checkpoint=last_checkpoint(results))
