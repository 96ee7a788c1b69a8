"""The configurations by nnU-Net's names: what they are in --dim, --lowres and --plan, what contradicts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from utils.errors import DatasetError, UserError
from utils.prepared_folder import CASCADE, LOWRES, PLAN, read_plan

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.preprocess import PreprocessOptions
    from scripts.run_options import RunOptions
    from utils.contracts import Plan

Configuration = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
SLICES, FINE, COARSE, CASCADED = "2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"
# The folders <task>_<suffix>, in the order in which they are prepared: the full resolution then knows whether
# there is a low one.
SUFFIXES = {SLICES: "2d", COARSE: "3d_lowres", FINE: "3d"}
PLAN_NAMES = {COARSE: LOWRES, CASCADED: CASCADE}  # by which main.py finds them beside <task>_3d


def dimension_of(configuration: str) -> int:
    """2 or 3."""
    return 2 if configuration == SLICES else 3


def asked_configurations(options: PreprocessOptions) -> tuple[str, ...]:
    """What is to be prepared, by --configuration or else by --dim and --lowres, in the order of `SUFFIXES`.

    A cascade needs both resolutions. UserError where the options contradict each other.
    """
    if not options.configuration:
        if options.lowres and options.dim == 2:
            raise UserError("There is no low-resolution 2-D configuration. Drop --lowres, or use --dim 3.")
        return (COARSE if options.lowres else SLICES if options.dim == 2 else FINE,)
    asked = set(options.configuration)
    if CASCADED in asked:
        asked = asked - {CASCADED} | {COARSE, FINE}
    told = f"--configuration {' '.join(options.configuration)}"
    if options.dim is not None and {dimension_of(name) for name in asked} != {options.dim}:
        raise UserError(f"{told} and --dim {options.dim} contradict each other. Leave --dim away.")
    if options.lowres and COARSE not in asked:
        raise UserError(f"{told} and --lowres contradict each other. Leave --lowres away.")
    return tuple(name for name in SUFFIXES if name in asked)


def single_configuration(options: PreprocessOptions) -> str:
    """The one that is to be prepared; UserError for several."""
    name, *others = asked_configurations(options)
    if others:
        raise UserError(f"One configuration is prepared here, got {', '.join([name, *others])}.")
    return name


def as_configured(options: RunOptions, given: Collection[str]) -> RunOptions:
    """The options with --dim and --plan as --configuration means them, where they are not `given`.

    A --data that is a prepared folder of that configuration itself is trained by its own plan. A given --plan
    may be any of the configuration, which it tells itself, see `refuse_other_configuration`. UserError where
    --dim is given and contradicts.
    """
    name = options.configuration
    if name is None:
        return options
    if "dim" in given and options.dim != dimension_of(name):
        raise UserError(
            f"--configuration {name} and --dim {options.dim} contradict each other. Leave --dim away."
        )
    is_itself = (options.data / PLAN).is_file() and read_plan(options.data).configuration == name
    plan = options.plan if "plan" in given or is_itself else PLAN_NAMES.get(name, options.plan)
    return replace(options, dim=2 if name == SLICES else 3, plan=plan)


def refuse_other_configuration(plan: Plan, folder: Path, options: RunOptions) -> None:
    """DatasetError for a plan that is not of the --configuration that was asked for."""
    if options.configuration not in (None, plan.configuration):
        raise DatasetError(
            f"--configuration {options.configuration}, but the plan {options.plan} of {folder} is of the "
            f"configuration {plan.configuration}. Leave one of --configuration and --plan away."
        )
