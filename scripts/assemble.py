"""Options + plan -> the parts of a run: cases, loaders, network, loss, module."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from data_loading.catalogue import Entry, build_catalogue, refuse_aimless, refuse_unpaired
from data_loading.loader import Shard, TrainingLoader, VolumeLoader
from data_loading.patches import SamplingRule, class_balanced_limits
from data_loading.recipes import build_recipe
from data_loading.residency import Residency, choose_residency, free_bytes, volume_bytes
from data_loading.targets import target_rule
from nnunet.inference.sliding_window import WindowRule
from nnunet.losses.multi_task import MultiTaskLoss, balanced_class_weights
from nnunet.network import Architecture, default_outputs, output_shapes
from nnunet.options import InferenceOptions, LossOptions, NetworkOptions
from nnunet.training.module import ModuleSettings
from nnunet.training.trainer import Machine, epochs_of
from scripts.run_options import RunOptions
from utils.contracts import NO_CLASS, Plan, PreprocessedCase
from utils.errors import DatasetError, EnvironmentFault, UserError
from utils.prepared_folder import PLAN, SPLITS, list_prepared, read_plan
from utils.run_log import say
from utils.splits import Fold, make_folds, pick_fold, read_folds

PARTS = ("val", "test")  # folders of cases without folds, below a preprocessed folder
LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment)
PREPARATION = (
    "axis_order",
    "spacing_mm",
    "normalisers",
    "uses_mask",
    "intensity",
    "preset",
    "foreground_channel",
    "label_names",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldCases:
    """The preprocessed cases of one fold."""

    folder: Path
    plan: Plan
    training: tuple[PreprocessedCase, ...]
    validation: tuple[PreprocessedCase, ...]
    folds: tuple[Fold, ...]  # all folds of the dataset, this one among them


def prepared_folder(options: RunOptions) -> Path:
    """`--data` itself where it is a preprocessed folder, else `<data>/<task>_<dim>d`."""
    if (options.data / PLAN).is_file():
        return options.data
    digits = "".join(filter(str.isdigit, Path(options.task).name.split("_")[0]))
    # MSD numbers have two digits, nnU-Net's three; people write either, or neither.
    codes = [options.task] if not digits else [digits, f"{int(digits):02d}", f"{int(digits):03d}"]
    names = [f"{code}_{options.dim}d" for code in codes]
    for name in names:
        if (options.data / name / PLAN).is_file():
            return options.data / name
    raise DatasetError(
        f"{options.data} has no preprocessed folder {names[0]}. "
        f"Run: python preprocess.py --data RAW --results {options.data} "
        f"--task {options.task} --dim {options.dim}"
    )


def read_fold(options: RunOptions) -> FoldCases:
    """The plan and the two sides of the fold; the dataset's own splits_final.json wins over made ones."""
    folder = prepared_folder(options)
    plan = read_plan(folder)
    _refuse_untrainable(plan, folder)
    refuse_unpaired(folder)
    cases = {case.case_id: case for case in list_prepared(folder)}
    if not cases:
        raise DatasetError(f"{folder} has no complete case. Run preprocess.py again.")
    folds = _all_folds(folder, cases, options)
    patients = {case.case_id: case.patient_id for case in cases.values()}
    fold = pick_fold(folds, options.fold, patients=patients, source=folder / SPLITS)
    return FoldCases(
        folder=folder,
        plan=with_filters(plan, options.network.filters),
        training=tuple(cases[name] for name in sorted(fold.train)),
        validation=tuple(cases[name] for name in sorted(fold.val)),
        folds=folds,
    )


def with_filters(plan: Plan, filters: tuple[int, ...]) -> Plan:
    """The plan with other channels per stage; empty `filters` leave it as it is, too many are cut off."""
    if not filters:
        return plan
    if min(filters) < 1:
        raise UserError(f"--filters needs channels of at least 1, got {filters}.")
    stages = tuple(
        replace(stage, channels=filters[min(level, len(filters) - 1)])
        for level, stage in enumerate(plan.stages)
    )
    return replace(plan, stages=stages)


def _refuse_untrainable(plan: Plan, folder: Path) -> None:
    """Planned and prepared, but not trained yet: better said than trained on wrong labels."""
    wishes = {
        "regions": bool(plan.regions),
        "an ignore label": plan.ignore_label is not None,
        "a previous stage": plan.prior_labels > 0,
    }
    if wanted := [name for name, wished in wishes.items() if wished]:
        raise DatasetError(
            f"{folder}: the plan asks for {' and '.join(wanted)}, which training does not support yet. "
            "Use a dataset with plain labels."
        )


def cases_to_predict(options: RunOptions) -> tuple[PreprocessedCase, ...]:
    """The cases of `--data` if it is itself a folder of prepared cases (val/, test/), else of its test/.

    Where there is no test/ either, the validation cases of the fold.
    """
    is_part = options.data.name in PARTS and (options.data.parent / PLAN).is_file()
    if (is_part or not (options.data / PLAN).is_file()) and (cases := list_prepared(options.data)):
        return cases
    test = prepared_folder(options) / "test"
    if test.is_dir() and (cases := list_prepared(test)):
        return cases
    return read_fold(options).validation


def _all_folds(folder: Path, cases: dict[str, PreprocessedCase], options: RunOptions) -> tuple[Fold, ...]:
    if (folder / SPLITS).is_file():
        return read_folds(folder / SPLITS)
    ordered = [cases[name] for name in sorted(cases)]
    return make_folds(
        [case.case_id for case in ordered],
        [case.patient_id for case in ordered],
        [None if case.class_target == NO_CLASS else case.class_target for case in ordered],
        num_folds=options.nfolds,
    )


def refuse_other_preparation(model: Plan, folder_plan: Plan, folder: Path) -> None:
    """DatasetError if the volumes of `folder` were not made as the model's were: it would guess silently."""
    changed = [name for name in PREPARATION if getattr(model, name) != getattr(folder_plan, name)]
    if changed:
        raise DatasetError(
            f"{folder} was prepared with another {', '.join(changed)} than the model was trained with. "
            "Predict the raw scans with -i instead, or preprocess with the model's plan."
        )


def architecture_of(options: NetworkOptions, plan: Plan) -> Architecture:
    """The network's open choices, with the number of supervised outputs resolved.

    The nvidia preset brings that network's convolutions: without bias, the decoder's kernels from below.
    """
    most = default_outputs(plan)
    extra = most - 1 if options.deep_supr_num is None else options.deep_supr_num
    outputs = min(1 + extra, len(plan.stages) - 1) if options.deep_supervision else 1
    return Architecture(
        encoder=options.encoder,
        branch=options.branch,
        norm=options.norm,
        negative_slope=options.negative_slope,
        num_outputs=max(outputs, 1),
        conv_bias=plan.preset != "nvidia",
        decoder_kernels="below" if plan.preset == "nvidia" else "skip",
    )


def build_loss(options: LossOptions, fold: FoldCases, *, drawn_evenly: bool = False) -> MultiTaskLoss:
    """The multi-task loss; class weights come from the training cases alone.

    Cases that are `drawn_evenly` by class need no weights on top.
    """
    plan = fold.plan
    num_classes = max(plan.num_classes, 1)
    targets = [case.class_target for case in fold.training]
    is_weighted = options.class_balance and not drawn_evenly
    weights = balanced_class_weights(targets, num_classes) if is_weighted else (1.0,) * num_classes
    return MultiTaskLoss(
        weights,
        class_loss_weight=options.class_loss_weight,
        lesion_free_weight=options.lesion_free_weight,
        batch_dice=plan.batch_dice if options.batch_dice is None else options.batch_dice,
        lesion_label=plan.num_labels - 1,
    )


def window_rule(options: InferenceOptions, plan: Plan, *, mirror: bool) -> WindowRule:
    """How volumes of this plan are cut into windows."""
    return WindowRule(
        patch=plan.patch,
        overlap=options.overlap,
        blend=options.blend,
        batch_size=options.val_batch_size,
        mirror=mirror,
    )


def module_settings(options: RunOptions, fold: FoldCases, steps_per_epoch: int) -> ModuleSettings:
    """What the Lightning module needs; validation in training never mirrors, the final one may."""
    return ModuleSettings(
        optimiser=options.optimiser,
        window=window_rule(options.inference, fold.plan, mirror=False),
        total_steps=epochs_of(options.training) * steps_per_epoch,
        training_cases=tuple(case.case_id for case in fold.training),
        time_budget=options.training.time_budget,
        compile=options.training.compile,
    )


def shard_of(options: RunOptions, machine: Machine) -> Shard:
    """This process's part of the work, as torchrun, SLURM's srun or Lightning's launcher numbered it."""
    if options.loader.num_workers < 1 or options.loader.prefetch < 1:
        raise UserError(
            f"--num_workers and --prefetch have to be at least 1, got {options.loader.num_workers} and "
            f"{options.loader.prefetch}."
        )
    world_size = machine.gpus * machine.nodes
    rank, local = _place_among(machine) if world_size > 1 else (0, _only_place())
    has_gpu = machine.device == "cuda"
    place = options.loader.augment_in
    return Shard(
        rank=rank,
        world_size=world_size,
        device_id=local if has_gpu else None,
        num_threads=max(1, min(options.loader.num_workers, os.cpu_count() or 1)),
        prefetch=options.loader.prefetch,
        on_host=place == "host" or (place == "auto" and not has_gpu),
    )


def _place_among(machine: Machine) -> tuple[int, int]:
    """Rank over all nodes and on this one; launchers are asked in Lightning's order, with its conditions."""
    try:
        launched = next((kind() for kind in LAUNCHERS if kind.detect()), None)
    except RuntimeError as error:  # srun without --ntasks-per-node
        raise EnvironmentFault(str(error)) from error
    if launched is None:  # Lightning starts the processes of a node; NODE_RANK numbers the nodes
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return int(os.environ.get("NODE_RANK", "0")) * machine.gpus + local, local
    if launched.world_size() != machine.gpus * machine.nodes:
        raise EnvironmentFault(
            f"{launched.world_size()} processes were started, but --gpus {machine.gpus} times --nodes "
            f"{machine.nodes} is {machine.gpus * machine.nodes}. Give both as the launcher has them."
        )
    return launched.global_rank(), launched.local_rank()


def _only_place() -> int:
    """0; EnvironmentFault where torchrun started several processes, each of which would train alone."""
    if TorchElasticEnvironment.detect() and (started := TorchElasticEnvironment().world_size()) > 1:
        raise EnvironmentFault(
            f"torchrun started {started} processes, but --gpus times --nodes is 1. On the CPU, add "
            f"--device cpu; then give --gpus as --nproc_per_node has it, and --nodes as --nnodes."
        )
    return 0


def training_entries(options: RunOptions, fold: FoldCases) -> tuple[Entry, ...]:
    """The checked cases to learn from; those to validate on are checked too, so that all faults are told."""
    slices_only = options.loader.data2d_dim == 2
    if slices_only and fold.plan.patch[0] != 1:
        raise UserError(
            f"--data2d_dim 2 takes plain 2-D images, but the plan's patch is {fold.plan.patch}. Add --dim 2."
        )
    if slices_only and options.loader.nvol is not None:
        raise UserError("--nvol cuts neighbouring slices from volumes; with --data2d_dim 2 there are none.")
    entries = build_catalogue((*fold.training, *fold.validation), fold.plan, slices_only=slices_only)
    refuse_aimless(entries[: len(fold.training)])
    return entries[: len(fold.training)]


def sampling_rule(options: RunOptions, fold: FoldCases, world_size: int) -> SamplingRule:
    """How windows are drawn from the fold's training cases."""
    loader = options.loader
    targets = [case.class_target for case in fold.training]
    return SamplingRule(
        patch=fold.plan.patch,
        batch_size=fold.plan.batch_size if loader.batch_size is None else loader.batch_size,
        world_size=world_size,
        steps_per_epoch=loader.steps_per_epoch,
        foreground_share=loader.oversampling,
        seed=options.seed,
        lesion_share=loader.lesion_centred,
        lesion_label=fold.plan.num_labels - 1,
        case_limits=class_balanced_limits(targets) if loader.balance_classes else (),
        num_volumes=loader.nvol,
    )


def residency_of(options: RunOptions, entries: Sequence[Entry]) -> Residency:
    """Whether the volumes are kept in memory."""
    return choose_residency(
        options.loader.residency, volume_bytes=volume_bytes(entries), free_bytes=free_bytes()
    )


def build_training_loader(
    options: RunOptions, fold: FoldCases, num_outputs: int, shard: Shard
) -> TrainingLoader:
    """The augmented patches of the fold's training cases."""
    rule = sampling_rule(options, fold, shard.world_size)
    entries = training_entries(options, fold)
    residency = residency_of(options, entries)
    if shard.rank == 0:
        say(f"{residency}.")
    return TrainingLoader(
        entries,
        rule,
        build_recipe(options.loader.augment, fold.plan),
        target_rule(fold.plan, output_shapes(fold.plan, num_outputs)),
        replace(shard, in_memory=residency.in_memory),
    )


def build_volume_loader(fold: FoldCases, shard: Shard) -> VolumeLoader:
    """The whole volumes of the fold's validation cases."""
    entries: tuple[Entry, ...] = build_catalogue(fold.validation, fold.plan)
    return VolumeLoader(entries, target_rule(fold.plan, (fold.plan.patch,)), shard)


def summary(fold: FoldCases, loader: TrainingLoader, network: torch.nn.Module) -> str:
    """What is trained on what, in one line."""
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    return (
        f"{len(fold.training)} cases, {len(fold.validation)} held out, "
        f"patch {'x'.join(map(str, fold.plan.patch))}, batch {loader.rule.batch_size}, "
        f"{len(loader)} steps per epoch, {millions:.2f} M parameters"
    )
