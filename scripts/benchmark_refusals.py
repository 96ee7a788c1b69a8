"""Combinations of options that measure nothing, and options that a measurement does not use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from data_loading.options import LoaderOptions
from nnunet.options import LossOptions, NetworkOptions, OptimiserOptions
from scripts.benchmark_options import BenchmarkOptions
from utils.errors import UserError
from utils.options import describe
from utils.prepared_folder import DEFAULT_PLAN
from utils.ranges import check_jobs

COUNTS = ("warmup", "train_batches", "test_batches", "repeats", "volumes", "val_batch_size")


def _names(group: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(group))


ALWAYS = frozenset({"mode", "data", "task", "dim", "results", "logname", "json"})
PROCESSES = frozenset({"device", "gpus", "nodes", "affinity", "seed"})
TIMES = frozenset({"warmup", "train_batches", "test_batches", "repeats"})
MADE_PLAN = frozenset({"preset", "spacing", "labels", "classes"})
SOURCE = frozenset({"input", "shape", "fold", "patch", "plan"}) | MADE_PLAN
# A benchmark counts batches: no epoch ends.
LOADER = _names(LoaderOptions) - {"steps_per_epoch"}
DRAWN = LOADER - {"augment", "augment_in", "balance_classes"}
NETWORK = _names(NetworkOptions)
STAGES = frozenset({"deep_supervision", "deep_supr_num", "depth", "min_fmap"})  # shapes of the targets
USED: Mapping[str, frozenset[str]] = {
    "loader": ALWAYS
    | PROCESSES
    | LOADER
    | STAGES
    | (TIMES - {"test_batches"})
    | {"fold", "patch", "plan", "operators", "layout"},
    "train": ALWAYS
    | PROCESSES
    | TIMES
    | SOURCE
    | LOADER
    | NETWORK
    | _names(LossOptions)
    | _names(OptimiserOptions)
    | {"amp", "compile"},
    "predict": ALWAYS
    | PROCESSES
    | TIMES
    | SOURCE
    | DRAWN
    | NETWORK
    | {"amp", "compile", "volume", "volumes", "val_batch_size", "overlap"},
    "preprocess": ALWAYS | {"preset", "n_jobs"},
}


def changed_options(options: Any, defaults: Mapping[str, Any], used: Collection[str]) -> list[str]:
    """The flags, in their order, that are not at their default and not among the `used` names."""
    return [
        f"--{name}"
        for name, value in describe(options).items()
        if name not in used and value != defaults.get(name)
    ]


def refuse_impossible(options: BenchmarkOptions) -> None:
    """UserError if the options ask for nothing that can be measured; says what would work."""
    for name in COUNTS:
        if getattr(options, name) < 1:
            raise UserError(f"--{name} should be at least 1, got {getattr(options, name)}.")
    check_jobs(options.n_jobs)
    if not 0 <= options.overlap < 1:
        raise UserError(f"--overlap is from 0 to below 1, got {options.overlap}.")
    is_described = options.mode == "preprocess" or options.shape is not None
    used = USED[options.mode] - (frozenset() if is_described else MADE_PLAN)
    if wrong := changed_options(options, describe(BenchmarkOptions()), used):
        needs_shape = MADE_PLAN & USED[options.mode] & {name.removeprefix("--") for name in wrong}
        what = " without --shape" if needs_shape else ""
        raise UserError(f"--mode {options.mode}{what} does not use {', '.join(wrong)}. Leave that away.")
    if options.operators and (options.gpus * options.nodes > 1 or options.network.layout != "NCDHW"):
        raise UserError(
            "--operators measures the steps of one process that delivers NCDHW. Leave --gpus, --nodes and "
            "--layout away."
        )
    _refuse_shapes(options)


def _refuse_shapes(options: BenchmarkOptions) -> None:
    is_synthetic = options.input == "synthetic"
    if options.volume is not None and not is_synthetic:
        raise UserError("--volume is the synthetic volume of --mode predict --input synthetic.")
    if options.volume is not None and min(options.volume) < 1:
        raise UserError(f"--volume is {options.volume}; every edge must be at least 1 voxel.")
    if options.volumes != 1 and is_synthetic:
        raise UserError("--volumes counts cases of --data. With synthetic input there is one volume.")
    if options.shape is not None:
        _refuse_made_plan(options, options.shape)


def _refuse_made_plan(options: BenchmarkOptions, shape: tuple[int, int, int, int]) -> None:
    if options.input != "synthetic":
        raise UserError(
            "--shape makes a plan for synthetic input: real patches have the shape of their plan."
        )
    if options.patch is not None or options.fold is not None or options.plan != DEFAULT_PLAN:
        raise UserError(
            "--shape already holds the patch, and its plan is made here, without cases. Give --shape, or "
            "--plan, --patch and --fold."
        )
    if min(shape) < 1:
        raise UserError(f"--shape is {shape}; channels and edges must be at least 1.")
    if (shape[1] == 1) != (options.dim == 2):
        raise UserError(
            f"--shape {shape} does not fit --dim {options.dim}: a 2-D patch is one slice deep, a 3-D patch "
            "has more than one."
        )
    if options.labels < 2 or options.classes < 0 or options.classes == 1 or min(options.spacing) <= 0:
        raise UserError(
            "--shape needs at least 2 --labels, either 0 or at least 2 --classes, and --spacing above 0; got "
            f"{options.labels}, {options.classes} and {options.spacing}."
        )
