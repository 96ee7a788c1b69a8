"""Before training: steps on the device tell whether its memory suffices, and lower batch or patch if not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pytorch_lightning as lightning

from data_loading.loader import Shard
from data_preprocessing.memory_budget import MIN_BATCH_SIZE
from data_preprocessing.planners import PlannerOptions, estimated_memory_gb
from data_preprocessing.shorter_patch import with_shorter_patch
from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint
from nnunet.training.trainer import Machine
from scripts.assemble import sampling_rule, trained_architecture
from scripts.configurations import CASCADED, COARSE, FINE
from scripts.fold_data import FoldCases
from scripts.process_team import Team, connected
from scripts.run_options import RunOptions
from utils.contracts import Plan, Shape
from utils.errors import EnvironmentFault
from utils.run_log import say
from utils.storage import from_plain, to_plain

if TYPE_CHECKING:
    from scripts.step_memory import StepMemory

GIGABYTE = 1e9

Attempt = Callable[[Plan, int], "StepMemory | None"]  # None: out of memory


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """How many patches of which size a step takes on each device."""

    batch_size: int
    patch: Shape

    def __str__(self) -> str:
        return f"batch {self.batch_size} of {'x'.join(map(str, self.patch))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A plan and a batch that the devices hold, and the memory of the fullest one."""

    plan: Plan
    batch_size: int
    memory: StepMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What is trained after the dry step: options and cases, lowered where it was necessary."""

    options: RunOptions
    fold: FoldCases
    asked: StepSize  # by plan and options
    used: StepSize
    memory: StepMemory | None = None  # None: no dry step

    @property
    def is_lowered(self) -> bool:
        """Whether less is trained at a time than plan and options ask for."""
        return self.used != self.asked

    @property
    def device_bytes(self) -> int:
        """What training needs of a GPU, as far as it was measured."""
        return 0 if self.memory is None else self.memory.peak or 0

    def callbacks(self) -> list[lightning.Callback]:
        """What the trainer keeps of it."""
        return [Lowered(self.asked, self.used)] if self.is_lowered else []

    def to_log(self) -> dict[str, Any]:
        """The record of a run, in plain values; nothing where there was no dry step and nothing changed."""
        if self.memory is None and not self.is_lowered:
            return {}
        measured = {} if self.memory is None else to_plain(self.memory)
        sizes = {"asked": to_plain(self.asked), "used": to_plain(self.used)}
        return {"step_memory": sizes | {"estimated_gb": estimate_of(self)} | measured}

    def resolved(self) -> dict[str, tuple[Any, str]]:
        """The options that the dry step decided, with their source."""
        names = ("batch_size", "patch")
        used = {name: getattr(self.used, name) for name in names}
        return {
            name: (value, "dry step") for name, value in used.items() if value != getattr(self.asked, name)
        }


@final
class Lowered(lightning.Callback):
    """Keeps in every checkpoint what was asked for, so that a resume goes on with what was trained."""

    def __init__(self, asked: StepSize, used: StepSize) -> None:
        self.asked = asked
        self.used = used

    def state_dict(self) -> dict[str, Any]:
        """Batch and patch as asked for and as trained, in plain values."""
        return {"asked": to_plain(self.asked), "used": to_plain(self.used)}


@contextmanager
def dry_team(options: RunOptions, machine: Machine, shard: Shard) -> Iterator[Team | None]:
    """The processes that take the dry step together; None where the run has none."""
    wish = options.training.dry_step
    if wish == "off" or (wish == "auto" and machine.device != "cuda"):
        yield None
        return
    with connected(Team(rank=shard.rank, size=shard.world_size), machine) as team:
        yield team


def fit_to_devices(
    options: RunOptions, fold: FoldCases, shard: Shard, team: Team | None, resume: Path | None
) -> Fitted:
    """Batch and patch that every process's device holds; on a resume those of the checkpoint.

    EnvironmentFault where nothing fits, or where a resumed training does not fit any more.
    """
    asked = _size_asked(options, fold, shard)
    fitted = Fitted(options=options, fold=fold, asked=asked, used=asked)
    if resume is not None:
        fitted = _as_recorded(fitted, resume)
    if team is None:
        if shard.rank == 0:
            say(f"{_estimated(fitted)}; --dry_step on measures it.")
        return fitted
    # Imported here: a run without a dry step does not wait for what measures it.
    from scripts.step_memory import measure_step

    def attempt(plan: Plan, batch_size: int) -> StepMemory | None:
        cases = replace(fitted.fold, plan=plan)
        return fullest(team.gather(measure_step(fitted.options, cases, batch_size, shard)))

    found = largest_fit(fitted.fold.plan, fitted.used.batch_size, attempt, runs=options.loader.nvol or 1)
    used = StepSize(batch_size=found.batch_size, patch=found.plan.patch)
    if resume is not None and used != fitted.used:
        raise EnvironmentFault(
            f"The training that --resume_training goes on with has {fitted.used}, more than "
            f"{found.memory.device} holds now; {used} would fit. A resume keeps its batches: end other "
            "programs there, use a device with more memory, or start a new training from its weights: "
            "--ckpt_path, into other --results."
        )
    fitted = replace(_with_size(fitted, found.plan, used), memory=found.memory)
    for line in _lines(fitted, was_lowered=resume is None and fitted.is_lowered):
        team.say(line)
    return fitted


def largest_fit(plan: Plan, batch_size: int, attempt: Attempt, *, runs: int = 1) -> Fit:
    """The plan with its batch, where that fits; else with the largest smaller batch, at least nnU-Net's 2.

    Where not even that fits, the patch gets shorter as in planning, at the smallest batch. Batches are
    multiples of `runs`. EnvironmentFault where no patch is left.
    """
    memory = attempt(plan, batch_size)
    if memory is not None:
        return Fit(plan=plan, batch_size=batch_size, memory=memory)
    least = min(ceil(MIN_BATCH_SIZE / runs) * runs, batch_size)
    found = _largest_batch(plan, range(least, batch_size, runs), attempt)
    shorter: Plan | None = plan
    while found is None:
        tried, shorter = shorter, with_shorter_patch(shorter)
        if shorter is None:
            patch = "x".join(map(str, tried.patch))
            raise EnvironmentFault(
                f"Not even a batch of {least} patches of {patch} voxels fits the memory of the device, and "
                "no shorter patch leaves the network anything to pool. End other programs there, or use "
                "another device, --amp, or fewer --filters."
            )
        found = _largest_batch(shorter, range(least, least + 1), attempt)
    return found


def _largest_batch(plan: Plan, sizes: range, attempt: Attempt) -> Fit | None:
    """The largest of `sizes` that fits, by bisection; None where none does."""
    found = None
    while sizes:
        middle = len(sizes) // 2
        memory = attempt(plan, sizes[middle])
        if memory is None:
            sizes = sizes[:middle]
        else:
            found = Fit(plan=plan, batch_size=sizes[middle], memory=memory)
            sizes = sizes[middle + 1 :]
    return found


def fullest(found: Sequence[StepMemory | None]) -> StepMemory | None:
    """Of all processes the one whose device has least left over; None where one ran out of memory."""
    known = [memory for memory in found if memory is not None]
    if len(known) < len(found):
        return None
    return min(known, key=lambda memory: (memory.free or 0) - (memory.peak or 0))


def estimate_of(fitted: Fitted) -> float:
    """The planner's estimate for what is trained, in GB."""
    plan = fitted.fold.plan
    encoder = trained_architecture(fitted.options, plan).encoder.partition(":")[0]
    return estimated_memory_gb(plan, fitted.used.batch_size, encoder=encoder)


def _size_asked(options: RunOptions, fold: FoldCases, shard: Shard) -> StepSize:
    """Refuses what no loader can deliver, before it is tried."""
    rule = sampling_rule(options, fold, shard.world_size)
    return StepSize(batch_size=rule.batch_size, patch=rule.patch)


def _as_recorded(fitted: Fitted, checkpoint: Path) -> Fitted:
    """The size of the training in the checkpoint, where a dry step has lowered what is asked for again."""
    content = read_checkpoint(checkpoint)
    sizes = content.get("callbacks", {}).get(Lowered.__qualname__, {})
    if sizes.get("asked") != to_plain(fitted.asked):
        return fitted
    used = from_plain(StepSize, sizes["used"], source=f"{checkpoint}: {Lowered.__qualname__}")
    plan = from_plain(Plan, content[MODEL_KEY]["plan"], source=f"{checkpoint}: plan")
    return _with_size(fitted, plan, used)


def plan_asked_for(content: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The plan that a checkpoint was to be trained with, in plain values: what a dry step lowered is undone.

    A shorter patch may have fewer stages; those before are not on record and are taken to be those of `plan`.
    """
    stored = dict(content.get(MODEL_KEY, {}).get("plan", {}))
    sizes = content.get("callbacks", {}).get(Lowered.__qualname__)
    if sizes is not None and sizes["asked"]["patch"] != sizes["used"]["patch"]:
        stored |= {"patch": sizes["asked"]["patch"], "stages": to_plain(plan.stages)}
    return stored


def _with_size(fitted: Fitted, plan: Plan, used: StepSize) -> Fitted:
    """The batch as an option, and the patch with the stages of `plan`, where they are not those already."""
    if used == fitted.used:
        return fitted
    options = fitted.options
    if used.batch_size != fitted.used.batch_size:
        options = replace(options, loader=replace(options.loader, batch_size=used.batch_size))
    trained = replace(fitted.fold.plan, patch=used.patch, stages=plan.stages)
    return replace(fitted, options=options, fold=replace(fitted.fold, plan=trained), used=used)


def _estimated(fitted: Fitted) -> str:
    estimate = estimate_of(fitted)
    return f"Memory of a training step, {fitted.used}: estimated {estimate:.2f} GB (planner)"


def _lines(fitted: Fitted, *, was_lowered: bool) -> list[str]:
    """The planner's estimate beside the measurement, and what was lowered and how to make that permanent."""
    memory = fitted.memory
    assert memory is not None  # there was a dry step
    measured = "not measured on this system" if memory.peak is None else f"measured {_gb(memory.peak)}"
    total, free = ("unknown" if size is None else _gb(size) for size in (memory.total, memory.free))
    lines = [f"{_estimated(fitted)}, {measured}; {memory.device} has {total}, {free} free."]
    if was_lowered:
        lines.append(
            f"Out of memory with {fitted.asked}: training goes on with {fitted.used} instead. To make that "
            f"permanent: {_permanent(fitted)}."
        )
    return lines


def _permanent(fitted: Fitted) -> str:
    used = fitted.used
    batch = f"--batch_size {used.batch_size}"
    if used.patch == fitted.asked.patch:
        return f'{batch}, or "batch_size": {used.batch_size} in the plan'
    words = f"{_planning_words(fitted)} --plan_name smaller --patch_size {' '.join(map(str, used.patch))}"
    return f"{words}, then {_choosing_words(fitted)} {batch}"


def _planning_words(fitted: Fitted) -> str:
    """The command that plans the trained configuration as it was planned, but for the patch."""
    plan, usual, folder = fitted.fold.plan, PlannerOptions(), fitted.fold.folder
    configuration = FINE if plan.configuration == CASCADED else plan.configuration
    command = f"python preprocess.py --data RAW --results {folder.parent} --task {fitted.options.task}"
    given = {"planner": plan.planner, "preset": plan.preset, "resampling": plan.resampling}
    defaults = {"planner": usual.planner_name, "preset": usual.preset, "resampling": usual.interpolation}
    others = [f" --{name} {value}" for name, value in given.items() if value != defaults[name]]
    return f"{command} --configuration {configuration}{''.join(others)}"


def _choosing_words(fitted: Fitted) -> str:
    """What a training has to be told to take the plan `smaller` instead."""
    configuration = fitted.fold.plan.configuration
    if configuration == CASCADED:
        return "scripts/cascade.py --plan smaller"
    place = f"--data {fitted.fold.folder} " if configuration == COARSE else ""
    return f"{place}--plan smaller"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.2f} GB"
