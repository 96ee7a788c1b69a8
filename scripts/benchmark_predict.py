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

from nnunet.inference.predict import predict_case
from nnunet.inference.sliding_window import WindowRule
from scripts import benchmark_record as records
from scripts.benchmark_device import DeviceClock, forget_peak_memory, memory_now
from scripts.benchmark_loader import cases_of
from scripts.benchmark_network import (
    NetworkWork,
    arithmetic,
    batches_of,
    forward_of,
    network_work,
    settings_of,
)
from scripts.benchmark_result import NvidiaPrediction, PredictRecord, VolumeSpeed
from utils.contracts import Batch, ModelOutput, Plan, Shape
from utils.run_log import say
from utils.storage import read_array
from utils.timing import summarise

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions

OVERLAP = 0.5  # of neighbouring windows, nnU-Net's and our own default
SLICES = 16  # of a synthetic volume for a patch of one slice

Forward = Callable[[Tensor], ModelOutput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Forward passes of one repeat, in seconds."""

    wall_s: float
    laps_s: tuple[float, ...]  # from the end of one pass to the end of the next


def measure(options: BenchmarkOptions) -> PredictRecord:
    """Patches first, whole volumes second; then operations and the device's peak."""
    work = network_work(options)
    work.network.eval()
    forward = forward_of(work.network, is_compiled=options.compile)
    with batches_of(work, options.seed) as batches:
        first_s, passes = _pass_patches(work, forward, batches, options)
    volumes = _volumes(work.plan, options)
    speeds = tuple(_whole_volumes(work, forward, volumes, options, mirror=mirror) for mirror in (False, True))
    memory = memory_now(work.device)
    rates = tuple(len(p.laps_s) * work.batch_size / p.wall_s for p in passes)
    times = records.batch_times([lap for p in passes for lap in p.laps_s])
    gpu = torch.cuda.get_device_name() if work.device == "cuda" else None
    return PredictRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(gpu),
        options=records.portable_options(options),
        settings=settings_of(work, options),
        first_pass_s=first_s,
        patches_per_s=records.Spread(min=min(rates), median=median(rates), max=max(rates), repeats=rates),
        ms_per_pass=times,
        arithmetic=arithmetic(work, times.mean, is_training=False),
        overlap=OVERLAP,
        windows_at_once=options.val_batch_size,
        whole_volumes=speeds,
        memory_mb=memory,
        nvidia=nvidia_prediction(passes, work.batch_size),
    )


@torch.inference_mode()
def _pass_patches(
    work: NetworkWork, forward: Forward, batches: Iterator[Batch], options: BenchmarkOptions
) -> tuple[float, list[Passes]]:
    """The seconds of the first pass, and the timed ones."""
    clock, passes = DeviceClock(work.device), []
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
            started = time.perf_counter()
            ends = [clock.mark()]
            for _ in range(options.test_batches):
                forward(next(batches).image)
                ends.append(clock.mark())
            clock.wait()
            wall_s = time.perf_counter() - started
            seconds = clock.seconds(ends)
            laps = tuple(end - before for before, end in zip(seconds, seconds[1:], strict=False))
            passes.append(Passes(wall_s=wall_s, laps_s=laps))
            rate = options.test_batches * work.batch_size / wall_s
            say(f"Repeat {number + 1} of {options.repeats}: {rate:.2f} patches/s")
    return first_s, passes


def nvidia_prediction(passes: Sequence[Passes], batch_size: int) -> NvidiaPrediction:
    """NVIDIA's definition: differences of consecutive ends of passes; a stretch of one has its own."""
    laps = summarise([lap for p in passes for lap in (p.laps_s[1:] or p.laps_s)])
    return NvidiaPrediction(
        throughput_predict=batch_size / laps.mean_s,
        latency_predict_mean=laps.mean_s * records.MS_PER_S,
        latency_predict_90=laps.p90_s * records.MS_PER_S,
        latency_predict_95=laps.p95_s * records.MS_PER_S,
        latency_predict_99=laps.p99_s * records.MS_PER_S,
    )


def synthetic_shape(patch: Shape) -> Shape:
    """A volume of twice the patch; of sixteen slices where the patch is one slice deep."""
    depth, height, width = patch
    return (SLICES, height, width) if depth == 1 else (2 * depth, 2 * height, 2 * width)


def _volumes(plan: Plan, options: BenchmarkOptions) -> list[np.ndarray]:
    """(C, D, H, W) in host memory: the folder's first cases by name, or one of random voxels."""
    if options.input == "real":
        _, cases = cases_of(options)
        return [np.asarray(read_array(case.image), np.float32) for case in cases[: options.volumes]]
    shape = options.volume or synthetic_shape(plan.patch)
    random = np.random.default_rng(options.seed)
    return [random.standard_normal((plan.num_channels, *shape), dtype=np.float32)]


def _whole_volumes(
    work: NetworkWork,
    forward: Forward,
    volumes: Sequence[np.ndarray],
    options: BenchmarkOptions,
    *,
    mirror: bool,
) -> VolumeSpeed:
    """Every volume once without the clock, then with it, as often as there are repeats."""
    rule = WindowRule(
        patch=work.plan.patch, overlap=OVERLAP, batch_size=options.val_batch_size, mirror=mirror
    )
    device, is_half = torch.device(work.device), work.half is not None
    laps = []
    for number in range(1 + options.repeats):
        started = time.perf_counter()
        for place, volume in enumerate(volumes):
            # It returns arrays on the host, so the device has finished.
            predict_case(
                lambda windows: forward(work.arranged(windows)),
                volume,
                rule,
                case_id=str(place),
                device=device,
                amp=is_half,
            )
        if number:
            laps.append((time.perf_counter() - started) / len(volumes))
    voxels = round(sum(volume[0].size for volume in volumes) / len(volumes))
    seconds = median(laps)
    say(f"Whole volume{', mirrored views' if mirror else ''}: {seconds:.2f} s")
    return VolumeSpeed(
        tta=mirror,
        volumes=len(volumes),
        voxels=voxels,
        seconds_per_volume=seconds,
        voxels_per_s=voxels / seconds,
    )
