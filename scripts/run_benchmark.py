"""main.py --benchmark: the options of a run -> the same measurement as scripts/benchmark.py makes."""

from __future__ import annotations

from dataclasses import replace

from scripts import benchmark
from scripts.benchmark_options import SYNTHETIC, BenchmarkOptions
from scripts.benchmark_refusals import USED, changed_options
from scripts.run_options import ALL_CASES, RunOptions
from scripts.run_recipes import RULES
from utils.errors import UserError
from utils.options import describe

BATCHES = 200  # timed where --train_batches or --test_batches is 0, as NVIDIA's scripts have it
CHOICES = frozenset({"exec_mode", "recipe", "benchmark"})  # of a run alone
OTHER_MEANING = frozenset({"input"})  # a run's scans, a benchmark's kind of input


def run(options: RunOptions) -> None:
    """Measure training steps or predictions; UserError names the options that no benchmark uses."""
    benchmark.run(benchmark_options(options))


def benchmark_options(options: RunOptions) -> BenchmarkOptions:
    """What scripts/benchmark.py would be told: one repeat of the asked number of batches."""
    if options.exec_mode == "evaluate":
        raise UserError(
            "--benchmark measures --exec_mode train or predict, not evaluate. Choose one of them."
        )
    _refuse_unused(options)
    is_default = options.logname == RunOptions().logname  # that is a training's log
    training = options.training
    common = BenchmarkOptions(
        mode=options.exec_mode,
        data=options.data,
        task=options.task,
        dim=options.dim,
        plan=options.plan,
        fold=None if options.data == SYNTHETIC or options.fold == ALL_CASES else options.fold,
        device=options.device,
        gpus=options.gpus,
        nodes=options.nodes,
        affinity=options.affinity,
        amp=training.amp,
        compile=training.compile,
        warmup=options.warmup,
        train_batches=training.train_batches or BATCHES,
        test_batches=training.test_batches or BATCHES,
        repeats=1,
        seed=options.seed,
        results=options.results,
        logname=BenchmarkOptions().logname if is_default else options.logname,
        loader=replace(options.loader, steps_per_epoch=0),
        network=options.network,
    )
    if options.exec_mode == "train":
        return replace(common, loss=options.loss, optimiser=options.optimiser)
    inference = options.inference
    # As in NVIDIA's: one pass takes the windows that prediction gives the network at once.
    batch_size = inference.val_batch_size if options.loader.batch_size is None else options.loader.batch_size
    return replace(
        common,
        loader=replace(common.loader, batch_size=batch_size),
        val_batch_size=inference.val_batch_size,
        overlap=inference.overlap,
    )


def _refuse_unused(options: RunOptions) -> None:
    """UserError with the options that were changed for nothing; a recipe's own values are no change."""
    usual = {**describe(RunOptions()), **RULES.presets[options.recipe]}
    used = CHOICES | (USED[options.exec_mode] - OTHER_MEANING)
    if wrong := changed_options(options, usual, used):
        raise UserError(
            f"--benchmark with --exec_mode {options.exec_mode} does not use {', '.join(wrong)}: it counts "
            "batches, and keeps nothing but its figures. Leave that away."
        )
