"""The plan of a folder and the options -> the plan that is trained, and the network's open choices."""

from __future__ import annotations

from dataclasses import replace

from data_preprocessing.memory_budget import RESIDUAL
from data_preprocessing.planners import PlannerOptions
from data_preprocessing.topology import nvidia_topology
from nnunet.network import Architecture, default_outputs
from nnunet.options import NetworkOptions
from scripts.one_voice import say_once
from utils.contracts import Plan, Shape
from utils.errors import UserError

MORE_CHANNELS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)  # --more_chn, as NVIDIA had it


def trained_plan(plan: Plan, options: NetworkOptions) -> Plan:
    """The plan with the stages and channels that the options ask for; `plan` itself where they ask for none.

    `--depth` and `--min_fmap` plan the stages anew by NVIDIA's rule, for the plan's spacing and patch, which
    grows to what they can halve. Blocks per stage stay as planned. UserError if no such network exists.
    """
    return _with_filters(_with_stages(plan, options), _filters(options))


def architecture_of(options: NetworkOptions, plan: Plan) -> Architecture:
    """The network's open choices for the trained plan; UserError where they contradict it or each other.

    The nvidia preset brings that network's convolutions: without bias, the decoder's kernels from below.
    """
    return Architecture(
        encoder=_encoder(options, plan),
        branch=options.branch,
        norm=options.norm,
        negative_slope=options.negative_slope,
        num_outputs=_num_outputs(options, plan),
        conv_bias=plan.preset != "nvidia",
        decoder_kernels="below" if plan.preset == "nvidia" else "skip",
    )


def _with_stages(plan: Plan, options: NetworkOptions) -> Plan:
    """The plan with stages by NVIDIA's rule, where one of its two numbers was given."""
    if options.depth is None and options.min_fmap is None:
        return plan
    rule = PlannerOptions()
    depth = rule.depth if options.depth is None else options.depth
    min_fmap = rule.min_fmap if options.min_fmap is None else options.min_fmap
    if depth < 1 or min_fmap < 1:
        raise UserError(f"--depth and --min_fmap should be at least 1, got {depth} and {min_fmap}.")
    topology = nvidia_topology(plan.patch, plan.spacing_mm, depth=depth, min_fmap=min_fmap)
    if len(topology.stages) == 1:
        raise UserError(
            f"--min_fmap {min_fmap}: halving the patch {_text(plan.patch)} even once would leave an edge "
            f"below {min_fmap} voxels, and a U-Net needs two stages. Give a smaller --min_fmap."
        )
    if topology.patch == topology.divisor:
        raise UserError(
            f"--depth {depth} --min_fmap {min_fmap}: the lowest stage would be a single voxel, which has no "
            "mean and deviation to normalise by. Give a smaller --depth or a larger --min_fmap."
        )
    if topology.patch != plan.patch:
        say_once(
            f"The patch grows from {_text(plan.patch)} to {_text(topology.patch)} voxels, which the stages "
            f"of --depth {depth} --min_fmap {min_fmap} can halve."
        )
    stages = tuple(
        replace(stage, num_blocks=plan.stages[min(level, len(plan.stages) - 1)].num_blocks)
        for level, stage in enumerate(topology.stages)
    )
    return replace(plan, patch=topology.patch, stages=stages)


def _with_filters(plan: Plan, filters: tuple[int, ...]) -> Plan:
    """The plan with other channels per stage; the last holds for all stages behind, too many are cut off."""
    if not filters:
        return plan
    if min(filters) < 1:
        raise UserError(f"--filters needs channels of at least 1, got {filters}.")
    stages = tuple(
        replace(stage, channels=filters[min(level, len(filters) - 1)])
        for level, stage in enumerate(plan.stages)
    )
    return replace(plan, stages=stages)


def _filters(options: NetworkOptions) -> tuple[int, ...]:
    if not options.more_chn:
        return options.filters
    if options.filters:
        raise UserError(
            f"--more_chn is short for --filters {' '.join(map(str, MORE_CHANNELS))}. Give one of the two."
        )
    return MORE_CHANNELS


def _encoder(options: NetworkOptions, plan: Plan) -> str:
    """--encoder, or what --res_block is short for, or that of the plan."""
    if not options.res_block:
        return options.encoder or plan.encoder
    if options.encoder is None:
        return RESIDUAL
    name = options.encoder.partition(":")[0]
    if name != RESIDUAL:
        raise UserError(
            f"--res_block is short for --encoder residual, but --encoder is {name}. Give one of the two."
        )
    return options.encoder


def _num_outputs(options: NetworkOptions, plan: Plan) -> int:
    """Supervised resolutions: the finest, and the lower ones that were asked for."""
    if not options.deep_supervision:
        if options.deep_supr_num is not None:
            # NVIDIA's programs take it and say nothing, so command lines that have it alone go on running.
            say_once(
                f"--deep_supr_num {options.deep_supr_num} does nothing without --deep_supervision: the "
                "finest output alone is trained."
            )
        return 1
    if options.deep_supr_num is None:
        return default_outputs(plan)
    most = len(plan.stages) - 2  # the decoder has an output per stage but the last; one is the finest
    if not 1 <= options.deep_supr_num <= most:
        reach = f"from 1 to {most}" if most > 0 else "left away"
        raise UserError(
            f"--deep_supr_num should be {reach}, got {options.deep_supr_num}: beside the finest output, a "
            f"network of {len(plan.stages)} stages has {most} lower ones. Without --deep_supervision the "
            "finest alone is trained."
        )
    return 1 + options.deep_supr_num


def _text(patch: Shape) -> str:
    return "x".join(map(str, patch))
