"""The story of training: cases -> loaders -> network -> fit -> full-volume validation of the fold."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nnunet.network import MultiTaskUNet
from nnunet.training.epoch_report import EpochReport
from nnunet.training.module import ModuleSettings, MultiTaskModule
from nnunet.training.trainer import (
    best_checkpoint,
    build_trainer,
    choose_machine,
    epochs_of,
    last_checkpoint,
)
from scripts.assemble import (
    architecture_of,
    build_loss,
    build_training_loader,
    build_volume_loader,
    read_fold,
    shard_of,
    window_rule,
)
from scripts.final_validation import validate_fold
from scripts.run_options import RunOptions
from utils.errors import DatasetError
from utils.options import describe, parse
from utils.run_log import RunLog, say
from utils.seeding import seed_everything

DESCRIPTION = "Train the planned network on one fold."
# Lightning suggests worker processes and logging intervals; the DALI loader has neither.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*LeafSpec.*",
    ".*Trying to infer the `batch_size`.*",
)


def run(options: RunOptions) -> Path:
    """Train, validate, and return the path of the best checkpoint."""
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    seed_everything(options.seed)
    resume = _resume_path(options)
    machine = choose_machine(options.device, options.gpus, options.nodes)
    fold = read_fold(options)
    architecture = architecture_of(options.network, fold.plan)
    shard = shard_of(options, machine)

    training = build_training_loader(options, fold, architecture.num_outputs, shard)
    validation = build_volume_loader(fold, shard)
    network = MultiTaskUNet(fold.plan, architecture)
    module = MultiTaskModule(
        network,
        build_loss(options.loss, fold),
        fold.plan,
        architecture,
        ModuleSettings(
            optimiser=options.optimiser,
            window=window_rule(options.inference, fold.plan, mirror=False),
            total_steps=epochs_of(options.training) * len(training),
            time_budget=options.training.time_budget,
            compile=options.training.compile,
        ),
    )
    say(_opening(options, fold.plan.patch, training, network, machine.device))

    run_log = RunLog(options.results / options.logname, shard.rank)
    run_log.log("PARAMETER", describe(options))
    report = EpochReport(fold.plan, run_log, training)
    trainer = build_trainer(
        options.training, options.results, machine, options.optimiser.gradient_clip_val, [report]
    )
    from data_loading.data_module import DataModule

    trainer.fit(module, datamodule=DataModule(training, validation), ckpt_path=resume)
    best = best_checkpoint(trainer, options.results)
    if trainer.is_global_zero and options.training.save_ckpt:
        validate_fold(options, fold, best, run_log)
    run_log.close()
    return best


def _resume_path(options: RunOptions) -> Path | None:
    if not options.training.resume_training:
        return None
    path = last_checkpoint(options.results)
    if not path.is_file():
        raise DatasetError(f"--resume_training: there is no {path}. Leave the switch off to start afresh.")
    return path


def _opening(options: RunOptions, patch: tuple[int, ...], training, network, device: str) -> str:  # noqa: ANN001
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return (
        f"Training on {device}: {len(training.entries)} cases, patch {'x'.join(map(str, patch))}, "
        f"batch {training.rule.batch_size}, {len(training)} steps per epoch, {millions:.2f} M parameters. "
        f"Results: {options.results}"
    )


def main() -> None:
    """Run from the command line."""
    run(parse(RunOptions, sys.argv[1:], program="train.py", description=DESCRIPTION))


if __name__ == "__main__":
    from utils.command import run_command

    sys.exit(run_command(main))
