"""Optimisers, and the learning rate as a function of the run's progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.network import MultiTaskUNet
from nnunet.options import OptimiserOptions
from utils.errors import DatasetError, UserError

LEARNING_RATES = {"adam": 8e-4, "sgd": 1e-2}
WEIGHT_DECAYS = {"adam": 1e-4, "sgd": 3e-5}
WARMUP_STEPS = 250  # of --scheduler, as NVIDIA's
POLY_EXPONENT = 0.9  # Isensee et al. 2021


Part = Literal["network", "branch", "balance"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterGroup:
    """The weights of one part that learn; `balance` holds the learned weights of the tasks."""

    part: Part
    parameters: tuple[Parameter, ...]


def parameter_groups(network: MultiTaskUNet, loss: MultiTaskLoss) -> tuple[ParameterGroup, ...]:
    """What learns: the network, then its branch with the stream that leads to it, then the task weights.

    A part without a learning weight has no group. Together the first two keep the order of the network's
    parameters, in which an optimiser's state is saved.
    """
    modules: dict[Part, tuple[torch.nn.Module | None, ...]] = {
        "network": (network.encoder, network.decoder),
        "branch": (network.branch, network.class_stream),
        "balance": (loss.balance,),
    }
    groups = [
        ParameterGroup(
            part=part,
            parameters=tuple(
                weight
                for module in inside
                if module is not None
                for weight in module.parameters()
                if weight.requires_grad
            ),
        )
        for part, inside in modules.items()
    ]
    return tuple(group for group in groups if group.parameters)


def build_optimiser(
    groups: Sequence[ParameterGroup], options: OptimiserOptions, *, fused: bool
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum; unset rates are the optimiser's own."""
    rated = [
        {
            "params": list(group.parameters),
            "part": group.part,
            "lr": peak_rate(options, group.part),
            "peak_lr": peak_rate(options, group.part),
            "weight_decay": decay_rate(options, group.part),
        }
        for group in groups
    ]
    rate, decay = peak_rate(options), decay_rate(options)
    if options.optimizer == "adam":
        return torch.optim.AdamW(rated, lr=rate, weight_decay=decay, fused=fused)
    return torch.optim.SGD(
        rated,
        lr=rate,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
        weight_decay=decay,
        fused=fused,
    )


def reset_rates(optimiser: torch.optim.Optimizer, options: OptimiserOptions) -> None:
    """Take rates, decay and momentum from `options`: a checkpoint brings those of the run that wrote it."""
    for group in optimiser.param_groups:
        group["peak_lr"] = peak_rate(options, group["part"])
        group["weight_decay"] = decay_rate(options, group["part"])
        if "momentum" in group:  # of SGD
            group["momentum"], group["nesterov"] = options.momentum, options.momentum > 0


def optimiser_name(state: dict[str, Any]) -> str:
    """What --optimizer was called in the run that saved `state`."""
    return "adam" if "betas" in state["param_groups"][0] else "sgd"


def regrouped(state: dict[str, Any], groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """The saved `state` of an optimiser for `groups` of the same weights in the same order.

    Older programs saved all weights in one group. What is kept for a weight gets the weight's order in
    memory, which may be another one now (--layout): fused optimisers pair elements by their place.
    DatasetError if the number of weights differs.
    """
    saved = [place for group in state["param_groups"] for place in group["params"]]
    if len(saved) != sum(len(group.parameters) for group in groups):
        raise DatasetError(
            f"The checkpoint's optimiser moves {len(saved)} weights, this run's "
            f"{sum(len(group.parameters) for group in groups)}. Resume with the options of that run, or "
            "train into another results folder."
        )
    first, places = state["param_groups"][0], iter(saved)
    weights = dict(zip(saved, (weight for group in groups for weight in group.parameters), strict=True))
    return {
        **state,
        "state": {
            place: {name: _as_stored(value, weights[place]) for name, value in kept.items()}
            for place, kept in state["state"].items()
        },
        "param_groups": [
            {**first, "part": group.part, "params": list(islice(places, len(group.parameters)))}
            for group in groups
        ],
    }


def _as_stored(value: Any, weight: Tensor) -> Any:
    """A tensor of the weight's shape with the weight's strides; everything else as it is."""
    if not isinstance(value, Tensor) or value.shape != weight.shape or value.stride() == weight.stride():
        return value
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def peak_rate(options: OptimiserOptions, part: Part = "network") -> float:
    """The highest learning rate of a part in the run; unset, that of the network, then of the optimiser."""
    if part == "branch" and options.head_learning_rate is not None:
        return options.head_learning_rate
    return LEARNING_RATES[options.optimizer] if options.learning_rate is None else options.learning_rate


def decay_rate(options: OptimiserOptions, part: Part = "network") -> float:
    """The weight decay; unset, that of the optimiser. It would pull all task weights to 1: there it is 0."""
    if part == "balance":
        return 0.0
    return WEIGHT_DECAYS[options.optimizer] if options.weight_decay is None else options.weight_decay


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The share of its peak rate that each parameter group has at a given progress."""

    kind: str
    warmup_steps: int

    def factor(self, progress: float, step: int) -> float:
        """`progress` runs from 0 to 1 over the run, by steps or by the time budget, whichever is further."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1.0 - min(max(progress, 0.0), 1.0)
        if self.kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return rise * (left**POLY_EXPONENT if self.kind == "poly" else 1.0)


def build_schedule(options: OptimiserOptions) -> Schedule:
    """The schedule that `options` name; UserError where they contradict each other."""
    kind = "cosine" if options.scheduler else "constant"
    if options.schedule != "auto":
        if options.scheduler and options.schedule != kind:
            raise UserError(
                f"--scheduler is the cosine after a warm-up, --schedule {options.schedule} is another decay. "
                "Leave one away; --warmup_steps gives any schedule a warm-up."
            )
        kind = options.schedule
    warmup = (
        (WARMUP_STEPS if options.scheduler else 0) if options.warmup_steps is None else options.warmup_steps
    )
    return Schedule(kind=kind, warmup_steps=warmup)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group from its own peak, so that groups keep their ratio."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
