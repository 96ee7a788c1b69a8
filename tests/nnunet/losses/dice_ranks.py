"""One training step of a small network with batch Dice, alone or as one process of two; 3 may be ignored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet.label_coding import LabelCoding
from nnunet.losses.classification import CrossEntropy
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from utils.contracts import Batch, ModelOutput

NUM_RANKS = 2
PER_RANK = 2
SHAPE = (4, 6, 6)


def loss_of_both(ignore_label: int | None = None) -> MultiTaskLoss:
    return MultiTaskLoss(
        CrossEntropy().build((1, 1)),
        SegmentationLoss(coding=LabelCoding(num_labels=3, ignore_label=ignore_label), batch_dice=True),
        class_loss_weight=0.0,
        lesion_free_weight=1.0,
    )


def small_network() -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, kernel_size=3, padding=1)


def batch_of(places: slice, weights: tuple[float, ...], ignore_label: int | None = None) -> Batch:
    """Cases of the batch of all ranks, the later ones with more of every label; the first is half ignored."""
    generator = torch.Generator().manual_seed(1)
    count = NUM_RANKS * PER_RANK
    image = torch.randn(count, 1, *SHAPE, generator=generator)
    rarity = torch.linspace(0.9, 0.2, count).view(-1, 1, 1, 1, 1)
    shows = torch.rand(count, 1, *SHAPE, generator=generator) > rarity
    label = (shows * torch.randint(1, 3, (count, 1, *SHAPE), generator=generator)).to(torch.int16)
    if ignore_label is not None:
        label[0, :, : SHAPE[0] // 2] = ignore_label
    return Batch(
        image=image[places],
        label=(label[places], label[places, :, ::2, ::2, ::2]),
        class_target=torch.zeros(PER_RANK),
        case_weights=torch.tensor(weights)[places],
        case_ids=tuple("abcd")[places],
        num_counted=PER_RANK,
    )


def step(network: nn.Module, batch: Batch, loss: MultiTaskLoss) -> Tensor:
    """The loss, after its gradients were computed."""
    logits = network(batch.image)
    output = ModelOutput(label_logits=(logits, logits[..., ::2, ::2, ::2]), class_logits=None)
    total = loss(output, batch).total
    if loss.training:
        total.backward()
    return total.detach()


def gradients(network: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]


def run_rank(rank: int, folder: str, weights: tuple[float, ...], ignore_label: int | None) -> None:
    """Leave the loss and the gradients of this rank, and what it validates, in `folder`."""
    warnings.filterwarnings("ignore", ".*functional.all_reduce is deprecated.*")  # torch 2.13
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=NUM_RANKS
    )
    network, loss = DistributedDataParallel(small_network()), loss_of_both(ignore_label)
    batch = batch_of(slice(rank * PER_RANK, (rank + 1) * PER_RANK), weights, ignore_label)
    found: dict[str, Any] = {"loss": step(network, batch, loss), "gradients": gradients(network)}
    if rank == 0:  # alone: a rank that waited here for the other would never end
        found["validated"] = step(small_network(), batch, loss.eval())
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
