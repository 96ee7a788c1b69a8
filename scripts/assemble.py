"""Options + plan -> the parts of a run: cases, loaders, network, loss, module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from data_loading.catalogue import Entry, build_catalogue, refuse_aimless
from data_loading.loader import Shard, TrainingLoader, VolumeLoader
from data_loading.patches import SamplingRule, class_balanced_limits
from data_loading.recipes import build_recipe
from data_loading.residency import (
    Residency,
    as_gb,
    choose_residency,
    device_free_bytes,
    free_bytes,
    volume_bytes,
)
from data_loading.resident import upload
from data_loading.targets import target_rule
from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from nnunet.layout import arrange
from nnunet.losses.balancing import LARGEST_WEIGHT, SMALLEST_WEIGHT, TaskBalance
from nnunet.losses.classification import CLASS_LOSSES
from nnunet.losses.focal import FOCAL_GAMMA
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.network import Architecture, MultiTaskUNet, output_shapes
from nnunet.options import InferenceOptions, LossOptions
from nnunet.training.learning_parts import check_learning, choose_learning
from nnunet.training.module import ModuleSettings, MultiTaskModule
from nnunet.training.trainer import epochs_of
from nnunet.training.warm_start import WarmStart, load_fitting, refuse_seen
from scripts.environment_defaults import refuse_other_class_count
from scripts.fold_data import FoldCases
from scripts.original_grid import original_dice_of
from scripts.other_preparation import preparation_line, with_preparation
from scripts.run_options import RunOptions
from scripts.trained_plan import architecture_of
from utils.contracts import Plan
from utils.errors import UserError
from utils.left_right import left_right_line
from utils.run_log import say


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingParts:
    """What a trainer fits, and what it is fed with."""

    loader: TrainingLoader
    volumes: VolumeLoader | None  # None without cases to validate on
    module: MultiTaskModule
    warm_start: WarmStart | None = None


def build_loss(
    options: LossOptions, fold: FoldCases, *, drawn_evenly: bool = False, segmentation_learns: bool = True
) -> MultiTaskLoss:
    """The multi-task loss; the frequency of the classes is that of the training cases alone.

    Where cases are `drawn_evenly` by class, the loss meets every class equally often.
    """
    plan = fold.plan
    targets = [case.class_target for case in fold.training]
    counts = [targets.count(place) for place in range(max(plan.num_classes, 1))]
    class_loss = CLASS_LOSSES.build(options.class_loss)
    if not options.class_balance:
        class_loss = replace(class_loss, weights="none")
    segmentation = SegmentationLoss(
        coding=LabelCoding.of_plan(plan),
        batch_dice=plan.batch_dice if options.batch_dice is None else options.batch_dice,
        focal_gamma=FOCAL_GAMMA if options.focal else 0.0,
    )
    return MultiTaskLoss(
        class_loss.build([min(count, 1) for count in counts] if drawn_evenly else counts),
        segmentation,
        class_loss_weight=options.class_loss_weight,
        lesion_free_weight=options.lesion_free_weight,
        segmentation_learns=segmentation_learns,
        balance=_balance(options.class_loss_weight) if options.task_balance else None,
    )


def _balance(class_loss_weight: float) -> TaskBalance:
    """Learned weights that start at 1 and `class_loss_weight`."""
    if not SMALLEST_WEIGHT < class_loss_weight < LARGEST_WEIGHT:
        raise UserError(
            "--task_balance starts at --class_loss_weight, which should then lie between "
            f"{SMALLEST_WEIGHT:.2g} and {LARGEST_WEIGHT:.2g}, got {class_loss_weight:g}."
        )
    return TaskBalance((1.0, class_loss_weight))


def window_rule(options: InferenceOptions, plan: Plan, *, mirror: bool) -> WindowRule:
    """How volumes of this plan are cut into windows."""
    return WindowRule(
        patch=plan.patch,
        overlap=options.overlap,
        blend=options.blend,
        batch_size=options.val_batch_size,
        mirror=mirror,
        coding=LabelCoding.of_plan(plan),
        class_vote=options.class_vote,
    )


def module_settings(
    options: RunOptions, fold: FoldCases, steps_per_epoch: int, seen_before: Sequence[str] = ()
) -> ModuleSettings:
    """What the Lightning module needs; validation in training never mirrors, the final one may.

    `seen_before` are cases that the weights have learned from in an earlier run.
    """
    return ModuleSettings(
        optimiser=options.optimiser,
        window=window_rule(options.inference, fold.plan, mirror=False),
        total_steps=epochs_of(options.training) * steps_per_epoch,
        training_cases=tuple(sorted({*seen_before, *(case.case_id for case in fold.training)})),
        time_budget=options.training.time_budget,
        compile=options.training.compile,
        original_dice=(
            original_dice_of(fold.validation, fold.plan) if options.inference.invert_resampled_y else None
        ),
    )


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
        step_limit=options.training.train_batches,
        annotated_only=fold.plan.ignore_label is not None,
    )


def residency_of(
    options: RunOptions, entries: Sequence[Entry], shard: Shard, training_bytes: int = 0
) -> Residency:
    """Where the volumes are kept: on the GPU, if one runs the graph, in memory, or nowhere.

    `training_bytes` of the GPU are known to be needed for training.
    """
    gpu = None if shard.on_host else shard.device_id
    return choose_residency(
        options.loader.residency,
        volume_bytes=volume_bytes(entries),
        free_bytes=free_bytes(),
        device_free_bytes=None if gpu is None else device_free_bytes(gpu),
        training_bytes=training_bytes,
    )


def build_training_loader(
    options: RunOptions, fold: FoldCases, num_outputs: int, shard: Shard, training_bytes: int = 0
) -> TrainingLoader:
    """The augmented patches of the fold's training cases; `training_bytes` as in `residency_of`."""
    rule = sampling_rule(options, fold, shard.world_size)
    entries = training_entries(options, fold)
    return TrainingLoader(
        entries,
        rule,
        build_recipe(options.loader.augment, fold.plan),
        target_rule(fold.plan, output_shapes(fold.plan, num_outputs)),
        _with_volumes(shard, entries, residency_of(options, entries, shard, training_bytes)),
    )


def _with_volumes(shard: Shard, entries: Sequence[Entry], residency: Residency) -> Shard:
    """The shard with its volumes where they are to be kept; the first rank says where, in one line."""
    resident = None
    if residency.place == "device":
        assert shard.device_id is not None  # the place of a process refuses the wish without a GPU
        resident = upload(entries, torch.device("cuda", shard.device_id))
    if shard.rank == 0:
        occupied = "" if resident is None else f"; they occupy {as_gb(resident.occupied_bytes)} there"
        say(f"{residency}{occupied}.")
    return replace(shard, in_memory=residency.in_memory, resident=resident)


def build_volume_loader(options: RunOptions, fold: FoldCases, shard: Shard) -> VolumeLoader:
    """The whole volumes of the fold's validation cases, with --test_batches the first ones of them."""
    limit = options.test_limit
    cases = fold.validation[: None if limit is None else limit * shard.world_size]
    entries: tuple[Entry, ...] = build_catalogue(cases, fold.plan)
    return VolumeLoader(entries, target_rule(fold.plan, (fold.plan.patch,)), shard)


def build_parts(options: RunOptions, fold: FoldCases, shard: Shard, training_bytes: int = 0) -> TrainingParts:
    """Loaders, network, loss and module of one fold; `training_bytes` as in `residency_of`."""
    architecture = trained_architecture(options, fold.plan)
    loader = build_training_loader(options, fold, architecture.num_outputs, shard, training_bytes)
    volumes = build_volume_loader(options, fold, shard) if fold.validation else None
    network = MultiTaskUNet(fold.plan, architecture)
    start = None
    if options.ckpt_path is not None:
        start = with_preparation(load_fitting(options.ckpt_path, network), fold.plan)
    held_out = [case.case_id for case in fold.validation]
    seen_before = () if start is None else refuse_seen(start, fold.plan.dataset, held_out)
    settings = module_settings(options, fold, len(loader), seen_before)
    module = build_module(options, fold, network, architecture, settings)
    return TrainingParts(loader=loader, volumes=volumes, module=module, warm_start=start)


def build_module(
    options: RunOptions,
    fold: FoldCases,
    network: MultiTaskUNet,
    architecture: Architecture,
    settings: ModuleSettings,
) -> MultiTaskModule:
    """The network with what of it learns, its loss and optimiser."""
    choose_learning(network, fold.plan, options.training)
    loss = build_loss(
        options.loss,
        fold,
        drawn_evenly=options.loader.balance_classes,
        segmentation_learns=options.training.segmentation_learns,
    )
    arranged = arrange(network, options.network.layout)
    return MultiTaskModule(arranged, loss, fold.plan, architecture, settings)


def trained_architecture(options: RunOptions, plan: Plan) -> Architecture:
    """That of the options, without a branch where the segmentation alone is learned."""
    refuse_other_class_count(plan)
    architecture = architecture_of(options.network, plan)
    if options.training.learn == "segmentation":
        architecture = replace(architecture, branch="none")
    has_class = plan.num_classes > 1 and architecture.branch != "none"
    check_learning(options.training, options.loss, has_class=has_class)
    return architecture


def summary(fold: FoldCases, parts: TrainingParts) -> str:
    """What is trained on what, in one line."""
    loader = parts.loader
    millions = sum(weight.numel() for weight in parts.module.network.parameters()) / 1e6
    return (
        f"{len(fold.training)} cases, {len(fold.validation)} held out, "
        f"patch {'x'.join(map(str, fold.plan.patch))}, batch {loader.rule.batch_size}, "
        f"{len(loader)} steps per epoch, {millions:.2f} M parameters"
    )


def start_lines(parts: TrainingParts) -> list[str]:
    """What a person should know of where the weights come from, which of them learn, and of left and right.

    Often nothing.
    """
    start = parts.warm_start
    lines = [] if start is None else [f"{start}.", preparation_line(start)]
    lines = [line for line in (*lines, left_right_line(parts.module.plan)) if line]
    weights = list(parts.module.network.parameters())
    learning = sum(weight.numel() for weight in weights if weight.requires_grad)
    if learning < sum(weight.numel() for weight in weights):
        lines.append(f"Of these, {learning / 1e6:.2f} M parameters learn.")
    if not parts.module.loss.segmentation_learns:
        lines.append(
            "The segmentation does not learn: its loss is not computed, macro-F1 chooses the best epoch, and "
            "the masks are as good as the weights that training started from."
        )
    return lines
