"""What `preprocess` tells of plans and cases, in lines for the person at the terminal."""

from __future__ import annotations

from pathlib import Path

from data_preprocessing.msd_presets import PublishedTask
from data_preprocessing.normalisers import NORMALISERS
from data_preprocessing.planners import PlannerOptions, estimated_memory_gb
from data_preprocessing.planning import covered_share, gains_by_low_resolution
from utils.contracts import Plan

MEGABYTE = 1e6


def size_text(plan: Plan) -> str:
    """Patch and batch in a few words."""
    return f"patch {'x'.join(map(str, plan.patch))}, batch {plan.batch_size}"


def plan_line(name: str, plan: Plan, *, has_low_resolution: bool) -> str:
    """What a training by the plan takes at a time, the memory of it, and whether a low resolution is missing.

    The memory is the planner's estimate; the dry step of a training measures it.
    """
    spacing = " x ".join(f"{edge:.3g}" for edge in plan.spacing_mm)
    memory_gb = estimated_memory_gb(plan, plan.batch_size, encoder=plan.encoder)
    line = (
        f"Plan {name} ({plan.configuration}): {size_text(plan)}, spacing {spacing} mm; a training step needs "
        f"about {memory_gb:.2f} GB (planner's estimate)."
    )
    if has_low_resolution or not gains_by_low_resolution(plan):
        return line
    return (
        f"{line} A patch covers {covered_share(plan):.0%} of the median case, so a low resolution is "
        "worthwhile: the same command with --configuration 3d_lowres prepares it, scripts/cascade.py trains "
        "on both."
    )


def source_of_settings(plan: Plan, task: PublishedTask, options: PlannerOptions) -> str:
    """Whose settings the new plan of a dataset with published ones has; what an option gave is its own."""
    if task.preset(plan.configuration) is None:
        return f"NVIDIA published no {plan.configuration} settings of {plan.dataset}: planned from the data."
    is_windowed = task.window is not None and plan.normalisers[0] == "ct_window"
    stats = plan.intensity[0]
    window = f"CT window {stats.low:g} to {stats.high:g}, mean {stats.mean:g}, deviation {stats.std:g}"
    choices = {
        "patch_size": (f"patch {plan.patch}", options.patch_size),
        "overwrite_target_spacing": (f"spacing {plan.spacing_mm} mm", options.overwrite_target_spacing),
    }
    published = [text for text, given in choices.values() if given is None]
    published += [f"batch size {plan.batch_size}", *([window] if is_windowed else [])]
    own = [f"{text} as --{name} says" for name, (text, given) in choices.items() if given is not None]
    return (
        f"{plan.dataset} is planned with the settings that NVIDIA published for it (nnU-Net for PyTorch, "
        f"configs.py): {', '.join(published)}; {''.join(f'{text}; ' for text in own)}"
        "--no_msd_table plans it from the data."
    )


def describe_plan(plan: Plan) -> str:
    """Grid, patch and normalisers in a few lines, with a channel's numbers where its normaliser uses them."""
    lines = [
        f"Plan {plan.configuration}: spacing {plan.spacing_mm} mm, patch {plan.patch}, "
        f"batch size {plan.batch_size}, {len(plan.stages)} stages"
    ]
    for name, normaliser, stats in zip(plan.channel_names, plan.normalisers, plan.intensity, strict=True):
        numbers = (
            f", clip {stats.low:g} to {stats.high:g}, mean {stats.mean:g}, std {stats.std:g}"
            if NORMALISERS[normaliser].uses_dataset_statistics
            else ""
        )
        lines.append(f"Channel {name}: {normaliser}{numbers}")
    return "\n".join(lines)


def summary(folder: Path, num_cases: int, num_prepared: int, seconds: float) -> str:
    """One line for the end of the run."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / MEGABYTE
    kept = num_cases - num_prepared
    return (
        f"Prepared {num_prepared} cases in {seconds:.1f} s"
        + (f", {kept} were up to date" if kept else "")
        + f": {folder} ({num_cases} cases, {size:.1f} MB)"
    )


def planned_summary(folder: Path, num_cases: int, num_missing: int) -> str:
    """One line for the end of a run that only plans."""
    return (
        f"Planned {num_cases} cases: {folder}; {num_missing} of them are yet to be prepared, by the same "
        "command without --plan_only."
    )
