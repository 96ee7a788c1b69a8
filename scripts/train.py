"""The story of training: cases -> loaders -> network -> fit -> full-volume validation of the fold."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.run_options import RunOptions
from scripts.run_recipes import RULES, read_command, training_script_rules
from scripts.run_start import refuse_contradictory_start
from utils.affinity import resolve_choice, set_affinity
from utils.command import run_command
from utils.errors import DatasetError, UserError
from utils.options import HELP_FLAGS
from utils.prepared_folder import DEFAULT_PLAN, PLAN, SPLITS, plan_names
from utils.run_log import RunLog, say
from utils.seeding import seed_everything
from utils.splits import write_folds

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from data_loading.loader import Shard
    from nnunet.training.trainer import Machine
    from scripts.assemble import TrainingParts
    from scripts.dry_step import Fitted
    from scripts.fold_data import FoldCases

DESCRIPTION = (
    "Train the planned network on one fold. As main.py --exec_mode train, but without --recipe nnunet: deep "
    "supervision, and unless a number of epochs is given 300 of them (600 on several GPUs), of which the "
    "first 100 (150) are not validated."
)
NO_ORIGINS: Mapping[str, str] = MappingProxyType({})
# Lightning suggests worker processes and logging intervals; the DALI loader has neither.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",  # a resume with --patience 0
    ".*LeafSpec.*",
    ".*TensorFloat32 tensor cores.*",  # the compiler on a GPU; heads are meant to be in float32
    ".*in eval mode at the start of training.*",  # the averaged copy of the weights
    ".*broadcast_buffers. is deprecated.*",  # torch 2.13; older ones do not know its new name
    ".*functional.all_reduce is deprecated.*",  # torch 2.13; its successor has no gradient in older ones
    ".*recommended to use .self.log.*sync_dist=True.*",  # scores of a validation are those of all ranks
)


def run(options: RunOptions, origins: Mapping[str, str] = NO_ORIGINS) -> Path:
    """Train, validate, and return the path of the best checkpoint; `origins` says who set which option."""
    # Imported here: --help must not wait for torch.
    from scripts.dry_step import dry_team, fit_to_devices
    from scripts.process_place import shard_of
    from scripts.results_folders import refuse_used

    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    refuse_contradictory_start(options)
    seed_everything(options.seed)
    resume = _resume_path(options)
    machine = _machine_of(options)
    fold = fold_of(options)
    shard = shard_of(options, machine)
    if resume is None:
        if shard.rank == 0:  # which removes those checkpoints later: others may not find them any more
            refuse_used(options, fold)
        _tell_replaced(options)
    _bind_to_processors(options, shard.device_id)
    with dry_team(options, machine, shard) as team:
        fitted = fit_to_devices(options, fold, shard, team, resume)
        return _fit(options, origins, fitted, machine, shard, resume)


def _fit(
    options: RunOptions,
    origins: Mapping[str, str],
    fitted: Fitted,
    machine: Machine,
    shard: Shard,
    resume: Path | None,
) -> Path:
    """Train what fits the devices; the log keeps the options as they were given."""
    from data_loading.data_module import DataModule
    from nnunet.training import trainer as training
    from nnunet.training.divergence import refuse_diverged
    from scripts.assemble import build_parts, start_lines, summary
    from scripts.resolved_options import logged_options, option_lines, resolved_options

    fold = fitted.fold
    parts = build_parts(fitted.options, fold, shard, fitted.device_bytes)
    resolved = resolved_options(fitted.options, fold.plan, parts, machine) | fitted.resolved()
    if shard.rank == 0:
        say(f"Training on {machine.device}: {summary(fold, parts)}. Results: {options.results}")
        for line in [*start_lines(parts), *option_lines(options, origins, resolved)]:
            say(line)
    with RunLog(options.results / options.logname, shard.rank) as run_log:
        start = {} if parts.warm_start is None else {"warm_start": parts.warm_start.to_log()}
        run_log.log("PARAMETER", logged_options(options, origins, resolved) | start | fitted.to_log())
        if shard.rank == 0 and fold.folds:
            write_folds(options.results / SPLITS, fold.folds)
        callbacks = _callbacks(options, parts, run_log, has_validation=bool(fold.validation))
        clip = options.optimiser.gradient_clip_val
        callbacks += fitted.callbacks()
        trainer = training.build_trainer(options.training, options.store, machine, clip, callbacks)
        training.check_ranks(trainer, rank=shard.rank, world_size=shard.world_size)
        if resume is None and trainer.is_global_zero:
            _remove_earlier(options)
        trainer.fit(parts.module, datamodule=DataModule(parts.loader, parts.volumes), ckpt_path=resume)
        best = training.best_checkpoint(trainer, options.store)
        if trainer.is_global_zero:
            refuse_diverged(trainer)
            if options.training.save_ckpt:
                _finish(options, fold, best, run_log)
    return best


def _callbacks(
    options: RunOptions, parts: TrainingParts, run_log: RunLog, *, has_validation: bool
) -> list[Callback]:
    from nnunet.training.epoch_report import EpochReport
    from nnunet.training.profiling import Profiler
    from nnunet.training.resumption import Resumption
    from nnunet.training.trainer import patience_of
    from nnunet.training.validation_schedule import ValidationSchedule

    patience = patience_of(options.training)
    return [
        EpochReport(parts.module.plan, run_log, parts.loader),
        Resumption(parts.loader, options.seed, options.optimiser, patience),
        ValidationSchedule(options.training, parts.module.clock, has_cases=has_validation),
        *([Profiler(options.results)] if options.training.profile else []),
    ]


def fold_of(options: RunOptions) -> FoldCases:
    """The cases; a classical classifier that could not be fitted to them is refused before training."""
    from scripts.classical_fit import refuse_impossible_fit
    from scripts.fold_data import read_fold
    from scripts.one_voice import say_once
    from scripts.stage_notes import refuse_foreign_priors

    fold = read_fold(options)
    refuse_impossible_fit(options, fold.plan)
    refuse_foreign_priors(fold.plan, fold.folder, options.results)
    if options.plan == DEFAULT_PLAN and (others := plan_names(fold.folder)[1:]):
        say_once(f"Training {fold.folder / PLAN}; --plan chooses another one: {', '.join(others)}.")
    return fold


def _finish(options: RunOptions, fold: FoldCases, checkpoint: Path, run_log: RunLog) -> None:
    """The classical classifier first: its scores stand in the report."""
    from scripts.classical_fit import fit_after_training
    from scripts.final_validation import validate_fold

    fit_after_training(options, fold, checkpoint)
    if not fold.validation:
        say(f"--fold {options.fold} holds no case out: nothing is scored. The model is {checkpoint}.")
        return
    validate_fold(options, fold, checkpoint, run_log)


def _machine_of(options: RunOptions) -> Machine:
    """The devices; what cannot be trained on them is refused before a case is read."""
    from nnunet.training import trainer as training

    machine = training.choose_machine(options.device, options.gpus, options.nodes)
    training.refuse_impossible(options.training, machine, norm=options.network.norm)
    return machine


def _bind_to_processors(options: RunOptions, device_id: int | None) -> None:
    """--affinity; without a GPU there is nothing to be near to, but a wrong name is refused all the same."""
    choice = resolve_choice(options.affinity)
    if device_id is not None:
        say(set_affinity(choice, device_id, options.gpus).reason)


def _resume_path(options: RunOptions) -> Path | None:
    """The checkpoint to go on from; None for a fresh start."""
    from nnunet.training.trainer import last_checkpoint

    if options.training.resume_training:
        last = last_checkpoint(options.store)
        if not last.is_file():
            raise DatasetError(
                f"--resume_training: there is no {last}. Leave the switch off to start afresh."
            )
        return last
    if options.training.save_ckpt:
        _refuse_own_start(options)
    return None


def _tell_replaced(options: RunOptions) -> None:
    """What becomes of an earlier training in the folder."""
    from nnunet.training.trainer import kept_checkpoints
    from scripts.one_voice import say_once

    if kept_checkpoints(options.store):
        fate = "are replaced" if options.training.save_ckpt else "stay"
        say_once(f"{options.results} holds an earlier training: its checkpoints {fate}, its log goes on.")


def _refuse_own_start(options: RunOptions) -> None:
    """UserError for a --ckpt_path among the checkpoints that this run replaces."""
    from nnunet.training.trainer import last_checkpoint

    if options.ckpt_path is None:
        return
    folder = last_checkpoint(options.store).parent.resolve()
    if folder in (options.ckpt_path.resolve().parent, options.ckpt_path.parent.resolve()):
        raise UserError(
            f"--ckpt_path {options.ckpt_path} lies in the folder whose checkpoints this run replaces. Choose "
            "another --results or --ckpt_store_dir, or go on with that training: --resume_training without "
            "--ckpt_path."
        )


def _remove_earlier(options: RunOptions) -> None:
    """An older best checkpoint would be taken for this run's, whose own may be written much later."""
    from nnunet.training.trainer import kept_checkpoints
    from scripts.results_folders import remove_scores

    if options.training.save_ckpt:
        for path in kept_checkpoints(options.store):
            path.unlink()
        if options.overwrite:
            remove_scores(options.results)


def main() -> None:
    """Run from the command line."""
    words = sys.argv[1:]
    # --help is answered with the program's own text, before the words are understood.
    rules = RULES if HELP_FLAGS.intersection(words) else training_script_rules(words)
    command = read_command(words, program="train.py", description=DESCRIPTION, rules=rules)
    if command.options.exec_mode != "train":
        raise UserError(
            "scripts/train.py trains. For another --exec_mode use main.py or scripts/inference.py."
        )
    from scripts.results_folders import own_results

    run(own_results(command), command.origins)


if __name__ == "__main__":
    sys.exit(run_command(main))
