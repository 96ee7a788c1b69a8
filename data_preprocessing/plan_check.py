"""Check of a plan that a person may have edited: every message names the field, its value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from data_preprocessing.planners import Resampling
from data_preprocessing.topology import total_stride
from utils.contracts import Plan
from utils.errors import DatasetError


def validate_plan(plan: Plan) -> None:
    """Raise a DatasetError that lists everything in `plan` that contradicts itself."""
    complaints = [*_grid(plan), *_stages(plan), *_channels(plan), *_labels(plan)]
    if complaints:
        lines = "\n".join(f"- {complaint}" for complaint in complaints)
        raise DatasetError(f"The plan {plan.configuration} of {plan.dataset} cannot be used:\n{lines}")


def _grid(plan: Plan) -> Iterator[str]:
    if sorted(plan.axis_order) != [0, 1, 2]:
        yield f"axis_order is {plan.axis_order}; it must hold 0, 1 and 2 once each."
    if not all(0 < spacing < float("inf") for spacing in plan.spacing_mm):
        yield f"spacing_mm is {plan.spacing_mm}; every spacing must be a number above 0."
    for name, edges in (("median_shape", plan.median_shape), ("patch", plan.patch)):
        if min(edges) < 1:
            yield f"{name} is {edges}; every edge must be at least 1 voxel."
    if (plan.configuration == "2d") != (plan.patch[0] == 1):
        yield (
            f"patch is {plan.patch} but configuration is {plan.configuration!r}; "
            "a 2d patch has one slice (1 H W), every other one more than one."
        )
    if plan.batch_size < 1:
        yield f"batch_size is {plan.batch_size}; it must be at least 1."
    if plan.resampling not in get_args(Resampling):
        yield f"resampling is {plan.resampling!r}; choose one of {list(get_args(Resampling))}."


def _stages(plan: Plan) -> Iterator[str]:
    if plan.decoder_blocks < 1:
        yield f"decoder_blocks is {plan.decoder_blocks}; it must be at least 1."
    if len(plan.stages) < 2:
        yield f"stages has {len(plan.stages)} entries; a U-Net needs at least 2."
        return
    if plan.stages[0].stride != (1, 1, 1):
        yield f"stages[0].stride is {plan.stages[0].stride}; the first stage keeps the patch, so set 1 1 1."
    for level, stage in enumerate(plan.stages):
        if any(edge < 1 or edge % 2 == 0 for edge in stage.kernel):
            yield f"stages[{level}].kernel is {stage.kernel}; every edge must be odd, such as 1 or 3."
        if min(stage.stride) < 1:
            yield f"stages[{level}].stride is {stage.stride}; every step must be at least 1."
        if stage.channels < 1 or stage.num_blocks < 1:
            yield (
                f"stages[{level}] has channels {stage.channels} and num_blocks {stage.num_blocks}; "
                "both must be at least 1."
            )
        if plan.patch[0] == 1 and (stage.kernel[0] != 1 or stage.stride[0] != 1):
            yield (
                f"stages[{level}] has kernel {stage.kernel} and stride {stage.stride}, but the patch is one "
                "slice deep; set the first number of both to 1."
            )
    divisor = total_stride(plan.stages)
    if any(step > 0 and edge % step for edge, step in zip(plan.patch, divisor, strict=True)):
        yield f"patch is {plan.patch}; the strides of the stages need a multiple of {divisor}."


def _channels(plan: Plan) -> Iterator[str]:
    for name in ("channel_names", "normalisers", "uses_mask", "intensity"):
        if (length := len(getattr(plan, name))) != plan.num_channels:
            yield f"{name} has {length} entries, but num_channels is {plan.num_channels}."
    if plan.num_channels < 1:
        yield f"num_channels is {plan.num_channels}; it must be at least 1."
    if plan.preset not in ("nnunet", "nvidia"):
        yield f"preset is {plan.preset!r}; choose nnunet or nvidia."


def _labels(plan: Plan) -> Iterator[str]:
    if plan.num_labels < 2:
        yield f"num_labels is {plan.num_labels}; it must be at least 2, background included."
    annotated = plan.num_labels + (plan.ignore_label is not None)
    if len(plan.label_names) not in (plan.num_labels, annotated):
        yield f"label_names has {len(plan.label_names)} entries but num_labels is {plan.num_labels}."
    if plan.ignore_label is not None and plan.ignore_label != plan.num_labels:
        yield f"ignore_label is {plan.ignore_label}; it must be the highest value, here {plan.num_labels}."
    if len(plan.class_names) != plan.num_classes:
        yield f"class_names has {len(plan.class_names)} entries but num_classes is {plan.num_classes}."
    for name in ("region_names", "regions_class_order"):
        if (length := len(getattr(plan, name))) != len(plan.regions):
            yield f"{name} has {length} entries for {len(plan.regions)} regions; give one for each."
    if unknown := [value for value in plan.regions_class_order if not 0 < value < plan.num_labels]:
        most = plan.num_labels - 1
        yield f"regions_class_order holds {unknown}; it must list label values from 1 to {most}."
    for region in plan.regions:
        if not region or not all(0 <= value < plan.num_labels for value in region):
            yield f"regions holds {region}; it must list label values from 0 to {plan.num_labels - 1}."
