"""The plan of a folder and the options -> the plan that is trained, and the network's open choices."""

from __future__ import annotations

from dataclasses import replace

from nnunet.network import Architecture, default_outputs
from nnunet.options import NetworkOptions
from utils.contracts import Plan
from utils.errors import UserError


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
