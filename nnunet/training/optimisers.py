"""Optimisers, and the learning rate as a function of the run's progress."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter

from nnunet.options import OptimiserOptions
from utils.errors import UserError

LEARNING_RATES = {"adam": 8e-4, "sgd": 1e-2}
WEIGHT_DECAYS = {"adam": 1e-4, "sgd": 3e-5}
WARMUP_STEPS = 250  # of --scheduler, as NVIDIA's
POLY_EXPONENT = 0.9  # Isensee et al. 2021


def build_optimiser(
    parameters: Iterable[Parameter], options: OptimiserOptions, *, fused: bool
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum; unset rates are the optimiser's own."""
    rate, decay = peak_rate(options), decay_rate(options)
    groups = [{"params": list(parameters), "peak_lr": rate}]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=rate,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
        weight_decay=decay,
        fused=fused,
    )


def reset_rates(optimiser: torch.optim.Optimizer, options: OptimiserOptions) -> None:
    """Take peak rate and decay from `options`: a checkpoint brings those of the run that wrote it."""
    for group in optimiser.param_groups:
        group["peak_lr"], group["weight_decay"] = peak_rate(options), decay_rate(options)


def peak_rate(options: OptimiserOptions) -> float:
    """The highest learning rate of the run; unset, that of the optimiser."""
    return LEARNING_RATES[options.optimizer] if options.learning_rate is None else options.learning_rate


def decay_rate(options: OptimiserOptions) -> float:
    """The weight decay; unset, that of the optimiser."""
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
