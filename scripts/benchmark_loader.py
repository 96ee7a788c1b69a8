"""Patches per second of the training loader: warm-up, repeats, and what each patch took."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

import torch

from data_loading.augmentations.base import Augmentation
from data_loading.catalogue import Entry, build_catalogue
from data_loading.loader import Shard, TrainingLoader
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.residency import choose_residency, free_bytes, volume_bytes
from data_loading.sources import SourceSettings, WindowSource
from data_loading.targets import TargetRule, target_rule
from nnunet.network import output_shapes
from nnunet.training.trainer import choose_machine
from scripts import benchmark_record as records
from scripts.benchmark_meter import metered
from scripts.benchmark_operators import operator_costs
from scripts.fold_data import prepared_folder, read_fold
from scripts.run_options import RunOptions
from scripts.trained_plan import architecture_of, trained_plan
from utils.contracts import Batch, Plan, PreprocessedCase
from utils.errors import UserError
from utils.prepared_folder import list_prepared, read_plan
from utils.run_log import say
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
    plan, cases = cases_of(options)
    entries = build_catalogue(cases, plan)
    machine = choose_machine(options.device, gpus=1, nodes=1)
    residency = choose_residency(
        options.residency, volume_bytes=volume_bytes(entries), free_bytes=free_bytes()
    )
    has_gpu = machine.device == "cuda"
    is_prediction = options.mode == "predict"
    batches = options.test_batches if is_prediction else options.train_batches
    outputs = architecture_of(options.network, plan).num_outputs
    return LoaderWork(
        plan=plan,
        entries=entries,
        rule=SamplingRule(
            patch=plan.patch,
            batch_size=plan.batch_size if options.batch_size is None else options.batch_size,
            world_size=1,
            steps_per_epoch=options.warmup + options.repeats * batches,
            foreground_share=options.oversampling,
            seed=options.seed,
        ),
        recipe=build_recipe(("none",) if is_prediction else options.aug, plan),
        targets=target_rule(plan, output_shapes(plan, outputs)),
        shard=Shard(
            device_id=0 if has_gpu else None,
            num_threads=min(options.num_workers, os.cpu_count() or 1),
            prefetch=options.prefetch,
            on_host=options.augment_in == "host" or (options.augment_in == "auto" and not has_gpu),
            in_memory=residency.in_memory,
        ),
        device=machine.device,
    )


def cases_of(options: BenchmarkOptions) -> tuple[Plan, tuple[PreprocessedCase, ...]]:
    """The folder's plan with the patch and the channels that were asked for, and its cases, or a fold's."""
    where = RunOptions(data=options.data, task=options.task, dim=options.dim, fold=options.fold or 0)
    if options.fold is not None:
        fold = read_fold(where)
        plan, cases = fold.plan, fold.training
    else:
        folder = prepared_folder(where)
        plan, cases = read_plan(folder), list_prepared(folder)
    if options.patch is not None:
        if min(options.patch) < 1 or (plan.patch[0] == 1) != (options.patch[0] == 1):
            raise UserError(f"--patch {options.patch} does not fit the plan, whose patch is {plan.patch}.")
        plan = replace(plan, patch=options.patch)
    return trained_plan(plan, options.network), cases


@dataclass(slots=True)
class Measured:
    """The clock's readings."""

    first_batch_s: float = 0.0
    laps_s: list[float] = field(default_factory=list)  # one per batch
    repeats: list[Usage] = field(default_factory=list)
    voxel_bytes: int = 0  # per batch
    device_mb: float | None = None


def measure(options: BenchmarkOptions) -> records.LoaderRecord:
    """Take batches and do nothing with them; with --operators the cost of every part as well."""
    work = plan_of_work(options)
    record = _measure(work, options)
    return replace(record, operators=operator_costs(work)) if options.operators else record


def _measure(work: LoaderWork, options: BenchmarkOptions) -> records.LoaderRecord:
    loader = work.loader()
    try:
        measured = _take(loader, work, options)
    finally:
        loader.close()
    peak_mb = peak_resident_bytes() / MB  # before anything else is allocated
    per_repeat = options.train_batches * work.rule.batch_size
    first = options.warmup * work.rule.batch_size
    counted = range(first, first + min(per_repeat * options.repeats, COUNTED_SAMPLES))
    return _record(work, options, measured, peak_mb=peak_mb, cut=_bytes_cut(work, counted))


def _take(loader: TrainingLoader, work: LoaderWork, options: BenchmarkOptions) -> Measured:
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
        before = lap = usage_now()
        last_s = lap.wall_s
        for _ in range(options.train_batches):
            next(batches)
            now_s = time.perf_counter()
            measured.laps_s.append(now_s - last_s)
            last_s = now_s
        wait()  # the GPU may still be at work on the last batch
        measured.repeats.append(usage_now().since(before))
        rate = options.train_batches * work.rule.batch_size / measured.repeats[-1].wall_s
        say(f"Repeat {number + 1} of {options.repeats}: {rate:.2f} patches/s")
    if work.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        measured.device_mb = (total - free) / MB
    return measured


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
    work: LoaderWork, options: BenchmarkOptions, measured: Measured, *, peak_mb: float, cut: float
) -> records.LoaderRecord:
    per_repeat = options.train_batches * work.rule.batch_size
    rates = [per_repeat / used.wall_s for used in measured.repeats]
    return records.LoaderRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(torch.cuda.get_device_name() if work.device != "cpu" else None),
        options=records.portable_options(options),
        settings=_settings(work),
        first_batch_s=measured.first_batch_s,
        patches_per_s=records.Spread(
            min=min(rates), median=median(rates), max=max(rates), repeats=tuple(rates)
        ),
        ms_per_batch=records.batch_times(measured.laps_s),
        delivered_mb_per_s=median(rates) / work.rule.batch_size * measured.voxel_bytes / MB,
        bytes_per_patch=records.Reads(
            cut=cut,
            from_device=_per_patch([used.device_bytes for used in measured.repeats], per_repeat),
            by_calls=_per_patch([used.call_bytes for used in measured.repeats], per_repeat),
        ),
        processor=_processor(measured.repeats, per_repeat),
        memory_mb=records.Memory(peak_resident=peak_mb, device_in_use=measured.device_mb),
    )


def _processor(repeats: Sequence[Usage], patches_per_repeat: int) -> records.Processor:
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


def _settings(work: LoaderWork) -> records.Settings:
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
    )
