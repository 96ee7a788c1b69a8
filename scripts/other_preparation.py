"""What a warm start should know: where the checkpoint's cases were normalised otherwise than the new ones."""

from __future__ import annotations

from dataclasses import replace

from data_preprocessing.normalisers import NORMALISERS
from nnunet.training.warm_start import WarmStart
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.storage import from_plain

MEASURED = frozenset(normaliser.name for normaliser in NORMALISERS if normaliser.uses_dataset_statistics)


def with_preparation(start: WarmStart, plan: Plan) -> WarmStart:
    """The start with what differs between its checkpoint's plan and `plan`; as it is where it has no plan."""
    try:
        before = from_plain(Plan, start.plan, source=f"{start.checkpoint}: plan")
    except DatasetError:
        return start
    return replace(start, prepared_otherwise=preparation_differences(before, plan))


def preparation_differences(before: Plan, plan: Plan) -> tuple[str, ...]:
    """How `before` and `plan` bring other intensities or voxels to a network, a text for each difference.

    Channels are compared by their place; numbers count as equal where their first three digits are.
    """
    theirs, ours = _preparation(before), _preparation(plan)
    return tuple(
        f"{name}: {theirs[name]} there, {ours[name]} here"
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    )


def preparation_line(start: WarmStart) -> str:
    """The differences in one line for a person; empty where there are none."""
    if not start.prepared_otherwise:
        return ""
    return (
        f"The cases of {start.checkpoint} were prepared otherwise: {'; '.join(start.prepared_otherwise)}. "
        "preprocess.py --plan_from prepares this dataset as its weights have learned."
    )


def _preparation(plan: Plan) -> dict[str, str]:
    """What decides a case's numbers and grid, in words."""
    channels = {f"channel {place}": _normalisation(plan, place) for place in range(len(plan.normalisers))}
    return channels | {
        "spacing in mm": " x ".join(map(_short, plan.spacing_mm)),
        "axis order": str(plan.axis_order),
        "steps of the preprocessing": plan.preset,
    }


def _normalisation(plan: Plan, place: int) -> str:
    name, stats = plan.normalisers[place], plan.intensity[place]
    text = f"{name} inside the mask" if plan.uses_mask[place] else name
    if name not in MEASURED:
        return text
    low, high, mean, std = map(_short, (stats.low, stats.high, stats.mean, stats.std))
    return f"{text} ({low} to {high}, mean {mean}, deviation {std})"


def _short(value: float) -> str:
    return f"{value:.3g}"
