"""The time of prediction: one forward pass per batch of patches, and whole volumes by sliding window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nnunet.inference.mirroring import left_right_of
from nnunet.inference.predict import predict_case
from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from scripts import benchmark_record as records
from scripts.benchmark_device import DeviceClock, forget_peak_memory, largest_memory, memory_now
from scripts.benchmark_loader import pooled_usage, processor_of
from scripts.benchmark_network import (
    NetworkWork,
    arithmetic,
    batches_of,
    forward_of,
    network_work,
    settings_of,
)
from scripts.benchmark_result import NetworkMemory, NvidiaPrediction, PredictRecord, VolumeSpeed
from scripts.fold_data import FoldCases
from scripts.process_team import ALONE, Team
from utils.contracts import Batch, ModelOutput, Shape
from utils.errors import UserError
from utils.storage import read_array
from utils.timing import summarise
from utils.usage import Usage, usage_now

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions

SLICES = 16  # of a synthetic volume for a patch of one slice

Forward = Callable[[Tensor], ModelOutput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Forward passes of one repeat, in seconds."""

    wall_s: float
    laps_s: tuple[float, ...]  # from the end of one pass to the end of the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """Whole volumes, as one process measured them."""

    mirror: bool
    voxels: tuple[int, ...]  # of each volume
    laps_s: tuple[float, ...]  # seconds for all of them, of each repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """Forward passes of patches, as one process measured them."""

    first_pass_s: float
    passes: tuple[Passes, ...]  # one per repeat
    used: tuple[Usage, ...]  # in each repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one process measured."""

    patches: Patches
    volumes: tuple[Volumes, ...]
    memory: NetworkMemory


def measure(options: BenchmarkOptions, team: Team = ALONE) -> PredictRecord:
    """Patches first, whole volumes second; then operations and the device's peak.

    Every process of a team predicts its own share; nothing passes between them.
    """
    work = network_work(options)
    work.network.eval()
    forward = forward_of(work.network, is_compiled=options.compile)
    scans = _scans(work.fold, options, team)
    with batches_of(work, options.seed + team.rank) as batches:
        patches = _pass_patches(work, forward, batches, options, team)
    volumes = tuple(
        _whole_volumes(work, forward, scans, options, mirror=mirror, team=team) for mirror in (False, True)
    )
    measured = Measured(patches=patches, volumes=volumes, memory=memory_now(work.device))
    return _record(work, options, team.gather(measured), team)


def _record(
    work: NetworkWork, options: BenchmarkOptions, found: Sequence[Measured], team: Team
) -> PredictRecord:
    patches, per_pass = [one.patches for one in found], work.batch_size * team.size
    repeats = zip(*(one.passes for one in patches), strict=True)
    passes = [max(repeat, key=lambda p: p.wall_s) for repeat in repeats]
    used = [pooled_usage(repeat) for repeat in zip(*(one.used for one in patches), strict=True)]
    rates = tuple(len(p.laps_s) * per_pass / p.wall_s for p in passes)
    times = records.batch_times([lap for p in passes for lap in p.laps_s])
    gpu = torch.cuda.get_device_name() if work.device == "cuda" else None
    return PredictRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(gpu),
        options=records.portable_options(options),
        settings=settings_of(work, options, team),
        first_pass_s=max(one.first_pass_s for one in patches),
        patches_per_s=records.Spread(min=min(rates), median=median(rates), max=max(rates), repeats=rates),
        ms_per_pass=times,
        arithmetic=arithmetic(work, times.mean, is_training=False),
        overlap=options.overlap,
        windows_at_once=options.val_batch_size,
        whole_volumes=tuple(map(volume_speed, zip(*(one.volumes for one in found), strict=True))),
        memory_mb=largest_memory([one.memory for one in found]),
        nvidia=nvidia_prediction(patches[0].passes, per_pass),
        processor=processor_of(used, per_pass * options.test_batches),
    )


def volume_speed(found: Sequence[Volumes]) -> VolumeSpeed:
    """The speed of all processes together, each of which predicted as many volumes as the others."""
    count = len(found[0].voxels)
    sizes = [voxels for one in found for voxels in one.voxels]
    laps = [max(repeat) for repeat in zip(*(one.laps_s for one in found), strict=True)]
    voxels, seconds = round(sum(sizes) / len(sizes)), median(laps) / count
    return VolumeSpeed(
        tta=found[0].mirror,
        volumes=len(sizes),
        voxels=voxels,
        seconds_per_volume=seconds,
        voxels_per_s=voxels * len(found) / seconds,
    )


@torch.inference_mode()
def _pass_patches(
    work: NetworkWork, forward: Forward, batches: Iterator[Batch], options: BenchmarkOptions, team: Team
) -> Patches:
    clock, passes, used = DeviceClock(work.device), [], []
    with work.autocast():
        started = time.perf_counter()
        forward(next(batches).image)
        clock.wait()
        first_s = time.perf_counter() - started
        for _ in range(options.warmup - 1):
            forward(next(batches).image)
        forget_peak_memory(work.device)
        for number in range(options.repeats):
            clock.wait()
            team.wait()
            before = usage_now()
            ends = [clock.mark()]
            for _ in range(options.test_batches):
                forward(next(batches).image)
                ends.append(clock.mark())
            clock.wait()
            used.append(usage_now().since(before))
            wall_s = used[-1].wall_s
            seconds = clock.seconds(ends)
            laps = tuple(end - before for before, end in zip(seconds, seconds[1:], strict=False))
            passes.append(Passes(wall_s=wall_s, laps_s=laps))
            rate = options.test_batches * work.batch_size * team.size / wall_s
            team.say(f"Repeat {number + 1} of {options.repeats}: {rate:.2f} patches/s")
    return Patches(first_pass_s=first_s, passes=tuple(passes), used=tuple(used))


def nvidia_prediction(passes: Sequence[Passes], per_pass: int) -> NvidiaPrediction:
    """NVIDIA's definition: differences of consecutive ends of passes; a stretch of one has its own.

    `per_pass` are the patches of all processes in one pass.
    """
    laps = summarise([lap for p in passes for lap in (p.laps_s[1:] or p.laps_s)])
    return NvidiaPrediction(
        throughput_predict=per_pass / laps.mean_s,
        latency_predict_mean=laps.mean_s * records.MS_PER_S,
        latency_predict_90=laps.p90_s * records.MS_PER_S,
        latency_predict_95=laps.p95_s * records.MS_PER_S,
        latency_predict_99=laps.p99_s * records.MS_PER_S,
    )


def synthetic_shape(patch: Shape) -> Shape:
    """A volume of twice the patch; of sixteen slices where the patch is one slice deep."""
    depth, height, width = patch
    return (SLICES, height, width) if depth == 1 else (2 * depth, 2 * height, 2 * width)


def _scans(fold: FoldCases, options: BenchmarkOptions, team: Team) -> list[np.ndarray]:
    """(C, D, H, W) in host memory: this process's first cases by name, or one volume of random voxels."""
    if options.input == "real":
        cases, count = fold.training, min(options.volumes, len(fold.training) // team.size)
        if not count:
            raise UserError(f"{team.size} processes need a whole case each, and there are {len(cases)}.")
        own = cases[team.rank :: team.size][:count]
        return [np.asarray(read_array(case.image), np.float32) for case in own]
    shape = options.volume or synthetic_shape(fold.plan.patch)
    random = np.random.default_rng(options.seed + team.rank)
    return [random.standard_normal((fold.plan.num_channels, *shape), dtype=np.float32)]


def _whole_volumes(
    work: NetworkWork,
    forward: Forward,
    scans: Sequence[np.ndarray],
    options: BenchmarkOptions,
    *,
    mirror: bool,
    team: Team,
) -> Volumes:
    """Every volume once without the clock, then with it, as often as there are repeats."""
    rule = WindowRule(
        patch=work.plan.patch,
        overlap=options.overlap,
        batch_size=options.val_batch_size,
        mirror=mirror,
        coding=LabelCoding.of_plan(work.plan),
        left_right=left_right_of(work.plan, work.plan.left_right),
    )
    device, is_half = torch.device(work.device), work.half is not None
    laps = []
    for number in range(1 + options.repeats):
        team.wait()
        started = time.perf_counter()
        for place, scan in enumerate(scans):
            # It returns arrays on the host, so the device has finished.
            predict_case(
                forward,
                scan,
                rule,
                case_id=str(place),
                device=device,
                amp=is_half,
            )
        if number:
            laps.append(time.perf_counter() - started)
    seconds = median(laps) / len(scans)
    team.say(f"Whole volume{', mirrored views' if mirror else ''}: {seconds:.2f} s")
    return Volumes(mirror=mirror, voxels=tuple(scan[0].size for scan in scans), laps_s=tuple(laps))
