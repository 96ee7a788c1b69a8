"""A network and a batch that it learns by heart in a few steps, in half precision, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.network import Architecture, MultiTaskUNet
from utils.contracts import ModelOutput, Plan

CASES, STEPS = 4, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where and in what type the steps are made; float16 gets a loss scale."""

    name: str
    half: torch.dtype
    backend: str | None = None  # of torch.compile; None: plain


def network_for(plan: Plan, encoder: str, branch: str) -> MultiTaskUNet:
    """Without dropout and target: every step sees the same."""
    torch.manual_seed(0)
    return MultiTaskUNet(plan, Architecture(encoder=encoder, branch=f"{branch}:dropout=0"))


def make_steps(network: MultiTaskUNet, plan: Plan, device: Device) -> list[tuple[float, float]]:
    """Segmentation and class loss of each of the steps."""
    network.to(device.name).train()
    forward: Callable[..., ModelOutput] = network
    if device.backend is not None:
        torch.compiler.reset()
        forward = torch.compile(network, backend=device.backend)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(CASES, plan.num_channels, *plan.patch, generator=generator).to(device.name)
    truth = torch.arange(CASES, device=device.name) % plan.num_classes
    image[truth == 1] = image[truth == 1].cumsum(dim=-1) / 4  # another texture
    target = torch.zeros(CASES, *plan.patch, dtype=torch.long, device=device.name)
    target[..., 4:12, 4:12] = 1
    target[..., 6:10, 6:10] = 2
    image[:, 0][target == 2] += 2
    scaler = torch.amp.GradScaler(device.name, enabled=device.half == torch.float16)
    optimiser = torch.optim.AdamW(
        [
            {"params": [*part.parameters()], "lr": 4e-3 if part is network.branch else 2e-3}
            for part in network.children()
        ]
    )
    losses = []
    for _ in range(STEPS):
        with torch.autocast(device.name, dtype=device.half):
            output = forward(image, target.unsqueeze(1).to(torch.int16))
        assert output.class_logits is not None
        both = _losses(output.label_logits[0], target, output.class_logits, truth)
        optimiser.zero_grad()
        scaled: Any = scaler.scale(both.sum())
        scaled.backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append((both[0].item(), both[1].item()))
    return losses


def _losses(label_logits: Tensor, target: Tensor, class_logits: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(label_logits.float(), target), F.cross_entropy(class_logits, truth)])


def assert_learned(losses: list[tuple[float, float]], network: MultiTaskUNet) -> None:
    """Both losses fell, and no weight was spoiled."""
    for first, last in zip(losses[0], losses[-1], strict=True):
        assert last < 0.97 * first
    assert all(weight.isfinite().all() for weight in network.parameters())
