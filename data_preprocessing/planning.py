"""Plan of a configuration from a fingerprint: spacing, patch, stages, batch normalisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from data_preprocessing.memory_budget import count_elements, exceeds_memory, fitting_batch_size
from data_preprocessing.msd_presets import Preset, published_preset, with_window
from data_preprocessing.planners import OWN_GRID, Planner, PlannerOptions, check_options
from data_preprocessing.shorter_patch import shorter_topology
from data_preprocessing.topology import (
    Topology,
    nnunet_topology,
    nvidia_topology,
    with_blocks,
)
from utils.contracts import Dataset, Fingerprint, Plan, Shape, Spacing
from utils.errors import DatasetError, UserError

ANISOTROPY_LIMIT = 3.0  # ratio of spacings above which the slice axis gets a finer target spacing
FINE_PERCENTILE = 10  # of the slice spacings, for such a dataset
FINEST_MARGIN_MM = 1e-5  # keeps the slice axis the coarsest when it is held at the spacing of the others
INITIAL_EDGE_3D, INITIAL_EDGE_2D = 256, 2048  # voxels; edge of a cube or square of the initial patch's size
LOWRES_SHARE = 0.25  # of the median case; a smaller full-resolution patch asks for a low resolution
LOWRES_STEP = 1.03  # factor of the spacing per step
LOWRES_MIN_GAIN = 2.0  # fewer voxels by less than this are not worth a configuration
MASKED_SIZE = 0.75  # median relative size after the crop below which z-scores use the non-zero mask
NORMALISERS = {"ct": "ct_window", "nonorm": "identity", "rescale_to_0_1": "unit_range", "rgb_to_0_1": "rgb"}


class NoConfigurationError(DatasetError):
    """The dataset has no configuration of this kind, or would gain nothing by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a patch is fitted to, in planned axes; the median shape may hold halves, 1 slice makes it 2-D."""

    spacing_mm: Spacing
    median_shape: tuple[float, float, float]
    dataset_voxels: float
    num_labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Patch, stages and batch size that fit the device, and the grid they were made for."""

    grid: Grid
    topology: Topology
    batch_size: int


def plan_experiment(
    fingerprint: Fingerprint,
    *,
    configuration: str,
    options: PlannerOptions,
    ignore_label: int | None = None,
) -> Plan:
    """The plan of `configuration`: 2d, 3d_fullres, or 3d_lowres where the median case is large enough.

    Where NVIDIA published settings for the dataset, they hold under its preset, except where an option gives
    a spacing or a patch.
    The 2-d configuration never resamples the slice axis: the first number of its spacing is the target slice
    spacing, kept for information. `num_labels` does not count the ignore label, which has the highest value.
    """
    check_options(options, configuration)
    preset = published_preset(fingerprint, configuration) if options.follows_table else None
    if preset is not None:
        options = _with_published(options, preset)
    target = options.overwrite_target_spacing or target_spacing(fingerprint)
    axis_order = coarsest_first(target)
    full = _full_grid(fingerprint, target, axis_order)
    fit, batch_dice = _fit_configuration(full, configuration, options)
    normalisers = tuple(normaliser_for(name) for name in fingerprint.channel_names)
    return Plan(
        dataset=fingerprint.dataset,
        configuration=configuration,
        axis_order=axis_order,
        median_shape=_rounded(fit.grid.median_shape if configuration != "2d" else full.median_shape),
        spacing_mm=fit.grid.spacing_mm,
        patch=fit.topology.patch,
        batch_size=fit.batch_size if preset is None else preset.batch_size,
        stages=fit.topology.stages,
        normalisers=normalisers,
        uses_mask=_masked(normalisers, fingerprint.relative_sizes),
        intensity=with_window(fingerprint.intensity, preset.window if preset else None),
        channel_names=fingerprint.channel_names,
        label_names=fingerprint.label_names,
        class_names=fingerprint.class_names,
        num_channels=len(fingerprint.channel_names),
        num_labels=len(fingerprint.label_names) if ignore_label is None else ignore_label,
        num_classes=len(fingerprint.class_names),
        preset=options.preset,
        ignore_label=ignore_label,
        batch_dice=batch_dice,
        planner=options.planner_name,
        encoder=options.chosen.encoder,
        decoder_blocks=options.chosen.decoder_blocks,
        resampling=options.interpolation,
    )


def _with_published(options: PlannerOptions, preset: Preset) -> PlannerOptions:
    """The options with the published spacing and patch where they give none."""
    return replace(
        options,
        overwrite_target_spacing=options.overwrite_target_spacing or preset.spacing_mm,
        patch_size=options.patch_size or preset.patch,
    )


def with_regions(plan: Plan, dataset: Dataset) -> Plan:
    """The plan with the dataset's regions, and its labels that change places where left and right do.

    They change what a network learns, not the prepared arrays.
    """
    return replace(
        plan,
        regions=dataset.regions,
        region_names=dataset.region_names,
        regions_class_order=dataset.regions_class_order,
        left_right_pairs=dataset.left_right_pairs,
    )


def target_spacing(fingerprint: Fingerprint) -> Spacing:
    """Median spacing per axis (z, y, x) in mm; finer along a slice axis that is coarse and has few voxels.

    The exception (Isensee et al. 2021): the coarsest axis is more than 3 times coarser than the others and
    its voxels, times 3, are fewer than theirs. It then gets the 10th percentile, but stays coarser than the
    others.
    """
    spacings = np.asarray(fingerprint.spacings_mm, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(np.asarray(fingerprint.shapes), 50, axis=0)
    worst = int(np.argmax(target))
    coarsest_other = float(np.delete(target, worst).max())
    is_coarse = target[worst] > ANISOTROPY_LIMIT * coarsest_other
    if is_coarse and size[worst] * ANISOTROPY_LIMIT < np.delete(size, worst).min():
        fine = float(np.percentile(spacings[:, worst], FINE_PERCENTILE))
        target[worst] = fine if fine >= coarsest_other else coarsest_other + FINEST_MARGIN_MM
    z, y, x = (float(value) for value in target)
    return z, y, x


def coarsest_first(spacing_mm: Spacing) -> Shape:
    """Permutation of (z, y, x) that puts the axis of the largest spacing first; the first one wins a tie."""
    worst = max(range(3), key=lambda axis: spacing_mm[axis])
    second, third = (axis for axis in range(3) if axis != worst)
    return worst, second, third


def normaliser_for(channel_name: str) -> str:
    """The normaliser that a channel's name asks for, in any case of letters; z_score for every other name."""
    return NORMALISERS.get(channel_name.casefold(), "z_score")


def _masked(normalisers: Sequence[str], relative_sizes: Sequence[float]) -> tuple[bool, ...]:
    is_sparse = float(np.median(relative_sizes)) < MASKED_SIZE
    return tuple(is_sparse and name == "z_score" for name in normalisers)


def _full_grid(fingerprint: Fingerprint, target: Spacing, axis_order: Shape) -> Grid:
    """The median case at `target` (z, y, x), in planned axes."""
    spacings = np.asarray(fingerprint.spacings_mm, dtype=np.float64)
    resampled = np.rint(spacings / np.asarray(target) * np.asarray(fingerprint.shapes))
    median = np.median(resampled, axis=0)[list(axis_order)]
    depth, height, width = (max(float(edge), 1.0) for edge in median)
    return Grid(
        spacing_mm=(target[axis_order[0]], target[axis_order[1]], target[axis_order[2]]),
        median_shape=(depth, height, width),
        dataset_voxels=float(np.prod(median)) * len(fingerprint.case_ids),
        num_labels=len(fingerprint.label_names),
    )


def median_on_grid(fingerprint: Fingerprint, spacing_mm: Spacing, axis_order: Shape) -> Shape:
    """Voxels of the median case at a spacing, both in planned axes."""
    z, y, x = (spacing_mm[axis_order.index(axis)] for axis in range(3))
    return _rounded(_full_grid(fingerprint, (z, y, x), axis_order).median_shape)


def _fit_configuration(full: Grid, configuration: str, options: PlannerOptions) -> tuple[Fit, bool]:
    """The fit of `configuration`, and whether its Dice is pooled over the batch."""
    _, height, width = full.median_shape
    if configuration == "2d":
        # The batch may cover 5 % of all voxels of the dataset, not of one slice per case.
        return fit_patch(replace(full, median_shape=(1.0, height, width)), options), True
    if full.median_shape[0] == 1:
        raise NoConfigurationError(
            "The median case is one slice deep, so there is no 3-D configuration. "
            "Use the 2d configuration (--dim 2)."
        )
    fullres = fit_patch(full, options)
    coarse = low_resolution(fullres, options)
    if configuration == "3d_fullres":
        return fullres, coarse is not None
    if coarse is None:
        raise NoConfigurationError(
            f"The patch {fullres.topology.patch} covers enough of the median case "
            f"{_rounded(full.median_shape)}, so a low resolution would gain nothing. "
            "Use the 3d_fullres configuration."
        )
    return fit_patch(coarse, options), False


def covered_share(plan: Plan) -> float:
    """How much of the median case a patch covers, 1 where it is the larger one."""
    shares = (edge / whole for edge, whole in zip(plan.patch, plan.median_shape, strict=True))
    return prod(min(1.0, share) for share in shares)


def gains_by_low_resolution(plan: Plan) -> bool:
    """Whether a low resolution is worth a configuration of its own beside this full resolution.

    Where it is, planning pools the Dice of full resolution over the batch; an edited patch counts too.
    """
    is_asked_for = plan.configuration == "3d_fullres" and plan.batch_dice
    return is_asked_for and plan.resampling != OWN_GRID and covered_share(plan) < LOWRES_SHARE


def fit_patch(grid: Grid, options: PlannerOptions) -> Fit:
    """The largest patch of the grid's proportions whose smallest batch fits the device, with its stages."""
    planner = options.chosen
    if options.patch_size is not None:
        topology = _given_patch(options.patch_size, grid, options)
    else:
        topology = _shrink_to_memory(nnunet_topology(initial_patch(grid), grid.spacing_mm), grid, options)
        if options.preset == "nvidia":
            topology = _nvidia(topology.patch, grid, options)
    if len(topology.stages) == 1:
        raise DatasetError(
            f"The patch {topology.patch} is too small to be halved even once, and a U-Net needs two stages. "
            "Choose a finer --overwrite_target_spacing."
        )
    batch_size = fitting_batch_size(
        topology.patch,
        _elements(topology, grid, planner),
        planner.reference_for(topology.patch),
        memory_gb=options.memory_gb,
        dataset_voxels=grid.dataset_voxels,
    )
    return Fit(grid=grid, topology=with_blocks(topology, planner.blocks), batch_size=batch_size)


def _elements(topology: Topology, grid: Grid, planner: Planner) -> int:
    """What the planner's network for this patch counts in the estimate of memory."""
    return count_elements(
        topology.patch,
        with_blocks(topology, planner.blocks).stages,
        grid.num_labels,
        encoder=planner.encoder,
        decoder_blocks=planner.decoder_blocks,
    )


def initial_patch(grid: Grid) -> tuple[float, float, float]:
    """A patch isotropic in mm of 256^3 voxels (2-D: 2048^2), nowhere larger than the median case."""
    axes = (1, 2) if grid.median_shape[0] == 1 else (0, 1, 2)
    edge = INITIAL_EDGE_2D if len(axes) == 2 else INITIAL_EDGE_3D
    scale = edge * prod(grid.spacing_mm[axis] for axis in axes) ** (1 / len(axes))
    depth, height, width = (
        min(float(round(scale / grid.spacing_mm[axis])), grid.median_shape[axis]) if axis in axes else 1.0
        for axis in range(3)
    )
    return depth, height, width


def low_resolution(full: Fit, options: PlannerOptions) -> Grid | None:
    """The median case at the coarser spacing at which a patch covers a quarter of the median case.

    None where the full-resolution patch covers a quarter already, or where less than half the voxels are
    saved.
    """
    fine_mm = np.asarray(full.grid.spacing_mm)
    shape = np.asarray(full.grid.median_shape)
    spacing_mm, voxels = fine_mm.copy(), float(np.prod(shape))
    grid, patch = full.grid, full.topology.patch
    num_cases = full.grid.dataset_voxels / voxels
    while prod(patch) / voxels < LOWRES_SHARE:
        # First the fine axes catch up to a factor of 2 of the coarsest, then all grow together.
        behind = spacing_mm.max() / spacing_mm > 2
        spacing_mm[behind if behind.any() else slice(None)] *= LOWRES_STEP
        coarse_shape = fine_mm / spacing_mm * shape
        voxels = float(np.prod(coarse_shape))
        depth, height, width = (max(float(round(edge)), 1.0) for edge in coarse_shape)
        z, y, x = (float(value) for value in spacing_mm)
        grid = replace(
            full.grid,
            spacing_mm=(z, y, x),
            median_shape=(depth, height, width),
            dataset_voxels=voxels * num_cases,
        )
        patch = options.patch_size or fit_patch(grid, options).topology.patch
    is_worth_it = grid is not full.grid and np.prod(shape) / voxels >= LOWRES_MIN_GAIN
    return grid if is_worth_it else None


def _shrink_to_memory(topology: Topology, grid: Grid, options: PlannerOptions) -> Topology:
    """Shorten the axis that covers most of the median case, by one divisor, until the least batch fits."""
    planner = options.chosen
    reference = planner.reference_for(topology.patch)
    while exceeds_memory(_elements(topology, grid, planner), reference, options.memory_gb):
        shorter = shorter_topology(topology, grid.median_shape, grid.spacing_mm)
        if shorter is None:
            raise UserError(
                f"No patch fits --gpu_memory_target_gb {options.memory_gb:g}: {topology.patch} voxels are "
                "too many, and a shorter patch has nothing left to pool. Raise --gpu_memory_target_gb."
            )
        topology = shorter
    return topology


def _given_patch(patch: Shape, grid: Grid, options: PlannerOptions) -> Topology:
    """The stages of the user's patch, which must be one that they can halve."""
    is_nvidia = options.preset == "nvidia"
    topology = _nvidia(patch, grid, options) if is_nvidia else nnunet_topology(patch, grid.spacing_mm)
    if topology.patch != patch:
        raise UserError(
            f"The patch is {patch}, but the network halves it to whole voxels only if it is a multiple of "
            f"{topology.divisor}. The next larger one is {topology.patch}; give that as --patch_size."
        )
    return topology


def _nvidia(patch: Shape, grid: Grid, options: PlannerOptions) -> Topology:
    return nvidia_topology(patch, grid.spacing_mm, depth=options.depth, min_fmap=options.min_fmap)


def _rounded(shape: Sequence[float]) -> Shape:
    depth, height, width = (round(edge) for edge in shape)
    return depth, height, width
