"""Patches per second of the training loader: warm-up, repeats, and what each patch took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

import torch

from data_loading.augmentations.base import Augmentation
from data_loading.catalogue import Entry
from data_loading.loader import Shard, TrainingLoader
from data_loading.patches import SamplingRule
from data_loading.sources import SourceSettings, WindowSource
from data_loading.targets import TargetRule
from scripts import benchmark_record as records
from scripts.assemble import build_training_loader
from scripts.benchmark_meter import metered
from scripts.benchmark_operators import operator_costs
from scripts.benchmark_processes import machine_of, run_options_of
from scripts.fold_data import FoldCases, prepared_folder, read_fold
from scripts.named_plans import find_plan
from scripts.process_place import shard_of
from scripts.process_team import ALONE, Team
from scripts.trained_plan import architecture_of, trained_plan
from utils.contracts import Batch, Plan
from utils.errors import UserError
from utils.left_right import AUTO, with_left_right
from utils.prepared_folder import list_prepared
from utils.timing import waiter
from utils.usage import Usage, peak_resident_bytes, usage_now

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions

MB = 1e6  # bytes
COUNTED_SAMPLES = 200  # whose reads are counted; a mean over more says the same


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoaderWork:
    """What a loader is built from."""

    plan: Plan
    entries: tuple[Entry, ...]
    rule: SamplingRule
    recipe: tuple[Augmentation, ...]
    targets: TargetRule
    shard: Shard
    device: str

    def loader(self) -> TrainingLoader:
        """A loader that has not begun."""
        return TrainingLoader(self.entries, self.rule, self.recipe, self.targets, self.shard)

    def source(self, recipe: Sequence[Augmentation], *, on_host: bool) -> WindowSource:
        """The same samples with another recipe, made by the thread that asks."""
        settings = SourceSettings(on_host=on_host, in_memory=self.shard.in_memory)
        return WindowSource(self.entries, self.rule, recipe, self.targets, settings)


def plan_of_work(options: BenchmarkOptions) -> LoaderWork:
    """The options resolved as training resolves them; patches to predict are not augmented."""
    fold = cases_of(options)
    is_prediction = options.mode == "predict"
    batches = options.test_batches if is_prediction else options.train_batches
    wanted = run_options_of(options, options.warmup + options.repeats * batches)
    if is_prediction:
        wanted = replace(wanted, loader=replace(wanted.loader, augment=("none",)))
    machine = machine_of(options)
    outputs = architecture_of(options.network, fold.plan).num_outputs
    loader = build_training_loader(wanted, fold, outputs, shard_of(wanted, machine))
    return LoaderWork(
        plan=fold.plan,
        entries=loader.entries,
        rule=loader.rule,
        recipe=loader.recipe,
        targets=loader.targets,
        shard=loader.shard,
        device=machine.device,
    )


def cases_of(options: BenchmarkOptions) -> FoldCases:
    """The folder's cases, or a fold's, and its plan with the patch and the stages that were asked for."""
    where = run_options_of(options)
    if options.fold is not None:
        found = replace(read_fold(where), validation=(), folds=())
    else:
        named = find_plan(prepared_folder(where), options.plan)
        cases = list_prepared(named.folder)
        found = FoldCases(folder=named.folder, plan=named.plan, training=cases, validation=(), folds=())
    plan = found.plan
    if options.patch is not None:
        if min(options.patch) < 1 or (plan.patch[0] == 1) != (options.patch[0] == 1):
            raise UserError(f"--patch {options.patch} does not fit the plan, whose patch is {plan.patch}.")
        plan = replace(plan, patch=options.patch)
    return replace(found, plan=with_left_right(trained_plan(plan, options.network), AUTO))


@dataclass(slots=True)
class Measured:
    """The clock's readings."""

    processes: int = 1
    first_batch_s: float = 0.0
    laps_s: list[list[float]] = field(default_factory=list)  # one per batch of each repeat
    repeats: list[Usage] = field(default_factory=list)
    voxel_bytes: int = 0  # per batch
    peak_mb: float = 0.0  # of the largest process
    device_mb: float | None = None


def measure(options: BenchmarkOptions, team: Team = ALONE) -> records.LoaderRecord:
    """Take batches and do nothing with them; with --operators the cost of every part as well."""
    work = plan_of_work(options)
    if options.operators and work.shard.resident is not None:
        raise UserError("--operators measures reading on the host. Add --residency memory.")
    record = _measure(work, options, team)
    return replace(record, operators=operator_costs(work)) if options.operators else record


def _measure(work: LoaderWork, options: BenchmarkOptions, team: Team) -> records.LoaderRecord:
    loader = work.loader()
    try:
        measured = _take(loader, work, options, team)
    finally:
        loader.close()
    measured.peak_mb = peak_resident_bytes() / MB  # before anything else is allocated
    per_repeat = options.train_batches * work.rule.batch_size
    first = options.warmup * work.rule.batch_size
    counted = range(first, first + min(per_repeat * options.repeats, COUNTED_SAMPLES))
    return _record(work, options, pooled(team.gather(measured)), cut=_bytes_cut(work, counted))


def _take(loader: TrainingLoader, work: LoaderWork, options: BenchmarkOptions, team: Team) -> Measured:
    wait, measured = waiter(work.device), Measured()
    started = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    wait()
    measured.first_batch_s = time.perf_counter() - started
    measured.voxel_bytes = _voxel_bytes(batch)
    for _ in range(options.warmup - 1):
        next(batches)
    for number in range(options.repeats):
        wait()
        team.wait()
        before = lap = usage_now()
        last_s, laps_s = lap.wall_s, []
        for _ in range(options.train_batches):
            next(batches)
            now_s = time.perf_counter()
            laps_s.append(now_s - last_s)
            last_s = now_s
        wait()  # the GPU may still be at work on the last batch
        measured.laps_s.append(laps_s)
        measured.repeats.append(usage_now().since(before))
        rate = options.train_batches * work.rule.batch_size * team.size / measured.repeats[-1].wall_s
        team.say(f"Repeat {number + 1} of {options.repeats}: {rate:.2f} patches/s")
    if work.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        measured.device_mb = (total - free) / MB
    return measured


def pooled(found: Sequence[Measured]) -> Measured:
    """All processes as one: the clock of the slowest in each repeat, the work of all together."""
    if len(found) == 1:
        return found[0]
    repeats = list(zip(*(one.repeats for one in found), strict=True))
    slowest = [max(range(len(found)), key=lambda rank, used=used: used[rank].wall_s) for used in repeats]
    devices = [one.device_mb for one in found if one.device_mb is not None]
    return Measured(
        processes=len(found),
        first_batch_s=max(one.first_batch_s for one in found),
        laps_s=[found[rank].laps_s[number] for number, rank in enumerate(slowest)],
        repeats=[pooled_usage(used) for used in repeats],
        voxel_bytes=sum(one.voxel_bytes for one in found),
        peak_mb=max(one.peak_mb for one in found),
        device_mb=max(devices, default=None),
    )


def pooled_usage(used: Sequence[Usage]) -> Usage:
    """What several processes used in the same time: the longest clock, the work of all."""

    def total(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    return Usage(
        wall_s=max(one.wall_s for one in used),
        process_s=sum(one.process_s for one in used),
        machine_s=max(one.machine_s for one in used),
        device_bytes=total([one.device_bytes for one in used]),
        call_bytes=total([one.call_bytes for one in used]),
    )


def _voxel_bytes(batch: Batch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (batch.image, *batch.label))


def _bytes_cut(work: LoaderWork, samples: Sequence[int]) -> float:
    """Mean bytes that these samples cut from storage; they are read once more for it."""
    source = work.source(work.recipe, on_host=False)
    meter = metered(source)
    for number in samples:
        source.make(number)
    return meter.bytes / len(samples)


def _record(
    work: LoaderWork, options: BenchmarkOptions, measured: Measured, *, cut: float
) -> records.LoaderRecord:
    per_batch = work.rule.batch_size * measured.processes
    per_repeat = options.train_batches * per_batch
    rates = [per_repeat / used.wall_s for used in measured.repeats]
    return records.LoaderRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(torch.cuda.get_device_name() if work.device != "cpu" else None),
        options=records.portable_options(options),
        settings=_settings(work, measured.processes),
        first_batch_s=measured.first_batch_s,
        patches_per_s=records.Spread(
            min=min(rates), median=median(rates), max=max(rates), repeats=tuple(rates)
        ),
        ms_per_batch=records.batch_times([lap for laps in measured.laps_s for lap in laps]),
        delivered_mb_per_s=median(rates) / per_batch * measured.voxel_bytes / MB,
        bytes_per_patch=records.Reads(
            cut=cut,
            from_device=_per_patch([used.device_bytes for used in measured.repeats], per_repeat),
            by_calls=_per_patch([used.call_bytes for used in measured.repeats], per_repeat),
        ),
        processor=processor_of(measured.repeats, per_repeat),
        memory_mb=records.Memory(peak_resident=measured.peak_mb, device_in_use=measured.device_mb),
    )


def processor_of(repeats: Sequence[Usage], patches_per_repeat: int) -> records.Processor:
    """The time of the processor over all repeats."""
    wall_s, process_s, machine_s = (
        sum(getattr(used, name) for used in repeats) for name in ("wall_s", "process_s", "machine_s")
    )
    return records.Processor(
        ms_per_patch=process_s * records.MS_PER_S / (patches_per_repeat * len(repeats)),
        cores_busy=process_s / wall_s,
        machine_cores_busy=machine_s / wall_s,
    )


def _per_patch(counted: Sequence[int | None], patches_per_repeat: int) -> float | None:
    known = [count for count in counted if count is not None]
    complete = len(known) == len(counted)
    return sum(known) / (patches_per_repeat * len(counted)) if complete else None


def _settings(work: LoaderWork, processes: int) -> records.Settings:
    source = work.source(work.recipe, on_host=work.shard.on_host)
    mixed = 0 < source.num_on_host < len(work.recipe)
    place = "host, then graph" if mixed else "host" if source.is_finished else "graph"
    return records.Settings(
        dataset=work.plan.dataset,
        configuration=work.plan.configuration,
        cases=len(work.entries),
        channels=work.plan.num_channels,
        image_type=work.entries[0].image_type,
        patch=work.rule.patch,
        batch_size=work.rule.batch_size,
        oversampling=work.rule.foreground_share,
        augmentations=tuple(map(repr, work.recipe)),
        augment_in=place,
        in_memory=work.shard.in_memory,
        outputs=len(work.targets.shapes),
        num_workers=work.shard.num_threads,
        prefetch=work.shard.prefetch,
        device=work.device,
        processes=processes,
        on_device=work.shard.resident is not None,
        layout="NDHWC" if work.shard.channels_last else "NCDHW",
    )
