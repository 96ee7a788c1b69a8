"""What unset options came to in this run, and who set the others: for the terminal and the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet.training.optimisers import build_schedule, decay_rate, peak_rate
from nnunet.training.trainer import Machine
from scripts.assemble import TrainingParts
from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.left_right import AUTO
from utils.options import describe

Resolved = dict[str, tuple[Any, str]]  # option: its value in this run, and where that comes from


def resolved_options(options: RunOptions, plan: Plan, parts: TrainingParts, machine: Machine) -> Resolved:
    """The options that were left unset or `auto`, with the value that the run has for them.

    A zero of --steps_per_epoch counts as unset: it stands for one pass over the cases.
    """
    found = _of_loading(options, plan, parts) | _of_learning(options, plan, parts)
    if options.device == "auto":
        found["device"] = (machine.device, "machine")
    if options.training.dry_step == "auto":
        found["dry_step"] = ("on" if machine.device == "cuda" else "off", "device")
    return found


def _of_loading(options: RunOptions, plan: Plan, parts: TrainingParts) -> Resolved:
    loader, found = options.loader, Resolved()
    shard = parts.loader.shard
    if loader.batch_size is None:
        found["batch_size"] = (plan.batch_size, "plan")
    if not loader.steps_per_epoch:
        is_cut = len(parts.loader) == options.training.train_batches
        source = "--train_batches" if is_cut else "one pass over the cases"
        found["steps_per_epoch"] = (len(parts.loader), source)
    if options.mirror_left_right == AUTO:
        found["mirror_left_right"] = (plan.left_right, "labels")
    if loader.augment_in == "auto":
        found["augment_in"] = ("host" if shard.on_host else "graph", "device")
    if loader.num_workers != shard.num_threads:
        found["num_workers"] = (shard.num_threads, "cores of this machine")
    return found


def _of_learning(options: RunOptions, plan: Plan, parts: TrainingParts) -> Resolved:
    optimiser, network = options.optimiser, options.network
    schedule, found = build_schedule(optimiser), Resolved()
    if network.encoder is None and not network.res_block:
        found["encoder"] = (parts.module.architecture.encoder, "plan")
    if not network.filters and not network.more_chn:
        is_planned = network.depth is None and network.min_fmap is None
        source = "plan" if is_planned else "NVIDIA's rule"
        found["filters"] = ([stage.channels for stage in plan.stages], source)
    if network.deep_supervision and network.deep_supr_num is None:
        found["deep_supr_num"] = (parts.module.architecture.num_outputs - 1, "plan")
    if options.loss.batch_dice is None:
        found["batch_dice"] = (plan.batch_dice, "plan")
    if optimiser.learning_rate is None:
        found["learning_rate"] = (peak_rate(optimiser), optimiser.optimizer)
    if optimiser.weight_decay is None:
        found["weight_decay"] = (decay_rate(optimiser), optimiser.optimizer)
    if optimiser.schedule == "auto":
        found["schedule"] = (schedule.kind, "scheduler" if optimiser.scheduler else "default")
    if optimiser.warmup_steps is None:
        found["warmup_steps"] = (schedule.warmup_steps, "scheduler" if optimiser.scheduler else "default")
    return found


def option_lines(options: RunOptions, origins: Mapping[str, str], resolved: Resolved) -> list[str]:
    """One line per place that set options, strongest last, and one for those that were left to the run."""
    values = describe(options)
    lines = []
    for origin in dict.fromkeys(origins.values()):
        told = [f"{name} {_text(values[name])}" for name, place in origins.items() if place == origin]
        lines.append(f"Options of {origin}: {', '.join(told)}")
    told = [f"{name} {_text(value)} ({source})" for name, (value, source) in resolved.items()]
    return [*lines, f"Left unset: {', '.join(told)}"]


def logged_options(options: RunOptions, origins: Mapping[str, str], resolved: Resolved) -> dict[str, Any]:
    """Every option as given; `resolved` holds what unset ones came to, `origins` who set the others."""
    found = {name: {"value": value, "source": source} for name, (value, source) in resolved.items()}
    return describe(options) | {"origins": dict(origins), "resolved": found}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return "-".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
