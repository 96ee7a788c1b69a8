"""One step of training with batch normalisation, alone or as one process of two, on the CPU or on one GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nnunet.network import Architecture, MultiTaskUNet
from nnunet.options import TrainingOptions
from nnunet.training.trainer import Machine, build_trainer
from tests.conftest import PLAN

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Processes that train together, on one device: `device` is cpu or cuda."""

    device: str
    number: int = 2
    sync_batchnorm: bool = False


@final
class Step(lightning.LightningModule):
    """Pulls the logits towards the image by plain gradient descent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = MultiTaskUNet(PLAN, Architecture(branch="none", norm="batch"))
        self.validated: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, images: Tensor) -> Tensor:
        return (self.network(images).label_logits[0] - images).square().mean()

    def validation_step(self, images: Tensor) -> None:
        self.validated = {name: value.cpu().clone() for name, value in self.state_dict().items()}


@final
class OwnState(lightning.Callback):
    """What this rank holds when its last step is done."""

    def __init__(self) -> None:
        self.trained: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ANN001
        self.trained = {name: value.cpu().clone() for name, value in pl_module.state_dict().items()}


def images_of(rank: int) -> Tensor:
    """Two images; those of rank 1 are brighter and of more contrast."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2, 1, *PLAN.patch, generator=generator) * (1 + rank) + rank


def run_step(images: Tensor, results: Path, ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """The state after the step, and that which was validated."""
    # Several ranks of one GPU count as nodes: Lightning gives each process of a node a device of its own.
    is_gpu = ranks.device == "cuda"
    gpus, nodes = (1, ranks.number) if is_gpu else (ranks.number, 1)
    options = TrainingOptions(epochs=1, save_ckpt=False, patience=0, sync_batchnorm=ranks.sync_batchnorm)
    machine, own = Machine(device=ranks.device, gpus=gpus, nodes=nodes), OwnState()
    trainer = build_trainer(options, results, machine, 0.0, [own])
    module = Step()
    with warnings.catch_warnings():
        # Lightning suggests worker processes and logging intervals, which these images have no use for.
        warnings.simplefilter("ignore")
        trainer.fit(module, *(DataLoader([images], batch_size=None) for _ in range(2)))
    return {"trained": own.trained, "validated": module.validated}


def run_ranks(folder: Path, ranks: Ranks) -> list[dict[str, dict[str, Tensor]]]:
    """`run_step` in processes of their own, each with its own images."""
    processes = []
    for rank in range(ranks.number):
        world: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": ranks.number, "TORCHELASTIC_RUN_ID": "test"}
        world |= {"LOCAL_RANK": rank if ranks.device == "cpu" else 0, "GROUP_RANK": 0}
        words = [str(folder), ranks.device, str(ranks.number), str(int(ranks.sync_batchnorm))]
        command = [sys.executable, "-m", "tests.nnunet.training.batch_norm_run", *words]
        environment = os.environ | {name: str(value) for name, value in world.items()}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * ranks.number
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks.number)]


def main(folder: Path, ranks: Ranks) -> None:
    """Run as one process of a world: RANK says which. gloo, for NCCL wants a GPU for each process."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting_point'}", rank=rank, world_size=ranks.number
    )
    torch.save(run_step(images_of(rank), folder / str(rank), ranks), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _, where, device, number, is_synchronised = sys.argv
    main(Path(where), Ranks(device=device, number=int(number), sync_batchnorm=is_synchronised == "1"))
