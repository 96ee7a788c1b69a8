"""Another dataset's plan for this one: its grid, patch, stages and normalisation, our channels and labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planners import PlannerOptions
from data_preprocessing.planning import median_on_grid
from utils.contracts import Fingerprint, Plan
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.prepared_folder import PLAN, PLANS, read_plan
from utils.run_log import say
from utils.storage import from_plain

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions

CHECKPOINTS = (".ckpt", ".safetensors")


def read_source(path: Path) -> Plan:
    """The plan in a prepared folder, in a file of its own (plan.json, plans/NAME.json) or in a checkpoint.

    DatasetError where there is none, where it contradicts itself, or where it is of a second stage.
    """
    if path.suffix in CHECKPOINTS:
        plan = _of_checkpoint(path)
    elif path.is_dir() or path.name == PLAN:
        plan = read_plan(path if path.is_dir() else path.parent)
    elif path.parent.name == PLANS and path.is_file():
        plan = read_plan(path.parent.parent, path.stem)
    else:
        raise DatasetError(
            f"--plan_from {path}: give a prepared folder, its plan.json or plans/NAME.json, or a checkpoint "
            f"({', '.join(CHECKPOINTS)})."
        )
    validate_plan(plan)
    if plan.prior_labels:
        raise DatasetError(
            f"--plan_from {path} is of the second stage of a cascade, whose input the first stage makes. "
            "Give the plan of a model with one stage."
        )
    return plan


def _of_checkpoint(path: Path) -> Plan:
    # Imported here: a preprocessing without a checkpoint does not wait for torch.
    from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint

    card = read_checkpoint(path).get(MODEL_KEY, {})
    if "plan" not in card:
        raise DatasetError(f"{path} holds no plan; was it made by this program? Give its prepared folder.")
    return from_plain(Plan, card["plan"], source=f"{path}: plan")


def refuse_contradictions(options: PreprocessOptions) -> None:
    """UserError for options that a plan from elsewhere leaves nothing to say to."""
    if options.plan_from is None:
        return
    given, usual = describe(options.planner), describe(PlannerOptions())
    wrong = [f"--{name}" for name in given if given[name] != usual[name]]
    wrong += ["--keep_plan"] if options.keep_plan else []
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: --plan_from takes all of that from {options.plan_from}. Leave one of the "
            "two away."
        )
    if options.exec_mode != "training":
        raise UserError(
            f"--exec_mode {options.exec_mode} uses the plan that training made. Leave --plan_from away."
        )


def transferred_plan(
    source: Plan,
    fingerprint: Fingerprint,
    *,
    configuration: str,
    foreground_channel: bool,
    ignore_label: int | None = None,
) -> Plan:
    """The plan of `source` for the dataset of the fingerprint and its ignore label, without its regions.

    From the source: grid, patch, batch, stages, normalisers with their numbers, order of the steps. Its
    intensities too, as where nnU-Net moves a plan: the weights have learned from values that were normalised
    so. From the dataset: channels by number, names, labels and classes. DatasetError where they do not agree.
    """
    _refuse_other_kind(source, fingerprint, configuration, foreground_channel=foreground_channel)
    names = fingerprint.channel_names
    theirs = source.channel_names[: len(names)]
    if names != theirs:
        say(
            f"The channels {', '.join(names)} are normalised as {', '.join(theirs)} of {source.dataset}: "
            f"{', '.join(source.normalisers)}."
        )
    return replace(
        source,
        dataset=fingerprint.dataset,
        median_shape=median_on_grid(fingerprint, source.spacing_mm, source.axis_order),
        channel_names=(*names, *source.channel_names[len(names) :]),
        label_names=fingerprint.label_names,
        class_names=fingerprint.class_names,
        num_labels=len(fingerprint.label_names) if ignore_label is None else ignore_label,
        num_classes=len(fingerprint.class_names),
        ignore_label=ignore_label,
        left_right="plain",
    )


def _refuse_other_kind(
    source: Plan, fingerprint: Fingerprint, configuration: str, *, foreground_channel: bool
) -> None:
    if source.configuration != configuration:
        flags = {"2d": "--dim 2", "3d_fullres": "--dim 3", "3d_lowres": "--dim 3 --lowres"}
        flag = flags.get(source.configuration, "another plan")
        raise DatasetError(
            f"--plan_from: the plan of {source.dataset} is of the configuration {source.configuration}, but "
            f"{configuration} is asked for. Use {flag}."
        )
    if source.foreground_channel != foreground_channel:
        state, flag = ("has", "--ohe") if source.foreground_channel else ("has no", "--no_ohe")
        raise DatasetError(
            f"--plan_from: the plan of {source.dataset} {state} foreground channel. Use {flag}."
        )
    count = source.num_channels - int(source.foreground_channel)
    if count != len(fingerprint.channel_names):
        raise DatasetError(
            f"--plan_from: {source.dataset} has {count} channels "
            f"({', '.join(source.channel_names[:count])}), but {fingerprint.dataset} has "
            f"{len(fingerprint.channel_names)} ({', '.join(fingerprint.channel_names)}). A network trained "
            "on the one cannot read the other: choose a source with as many channels, or plan the dataset "
            "by itself, without --plan_from."
        )
