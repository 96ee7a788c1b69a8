"""What a benchmark of the loader found, what all results share, and the check of a loader's file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utils.errors import DatasetError
from utils.options import describe
from utils.storage import from_plain
from utils.timing import summarise

SCHEMA = 1
MS_PER_S = 1e3
PLACES_OF_ONE_MACHINE = ("data", "results")  # options that say nothing elsewhere
PACKAGES = ("torch", "pytorch-lightning", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "numba", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """Where it was measured."""

    cpus: int
    cpu: str
    architecture: str
    gpu: str | None
    system: str
    python: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options came to."""

    dataset: str
    configuration: str
    cases: int
    channels: int
    image_type: str
    patch: tuple[int, int, int]
    batch_size: int
    oversampling: float
    augmentations: tuple[str, ...]
    augment_in: str  # host, graph, or "host, then graph" where a part has no compiled twin
    in_memory: bool  # of the host
    outputs: int  # supervised resolutions
    num_workers: int
    prefetch: int
    device: str
    processes: int = 1  # that load at the same time, each its own part
    on_device: bool = False  # the volumes lie on the GPU, and patches are cut there
    layout: str = "NCDHW"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One value per repeat, and their middle and ends."""

    min: float
    median: float
    max: float
    repeats: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTimes:
    """Milliseconds from one batch to the next, all repeats together; of several processes the slowest's."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Bytes per patch, on average.

    `cut` are the stored voxels that the samples' blocks hold, image and label maps; `from_device` and
    `by_calls` are the system's account of this process (None where there is none): pages that came from a
    disk rather than from the page cache, and bytes of read calls, which mapped files need none of.
    """

    cut: float
    from_device: float | None
    by_calls: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """Time of the processor: of all processes, and of the machine, which shows who else was busy."""

    ms_per_patch: float
    cores_busy: float
    machine_cores_busy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In MB of 1e6 bytes, of the largest process; `peak_resident` counts mapped pages of the volumes too."""

    peak_resident: float
    device_in_use: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One row: milliseconds per patch on one core, or on the GPU.

    `applied_ms` is the mean over draws that change something, as often as `probability` says; `forced_ms`
    the same with every probability of the part at 1; `mean_ms` is probability x applied_ms.
    """

    name: str
    place: str  # host or graph
    probability: float
    applied_ms: float
    forced_ms: float | None
    mean_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCosts:
    """All rows, and the sums of their `mean_ms`: what a patch costs at least."""

    rows: tuple[OperatorCost, ...]
    host_ms: float
    graph_ms: float
    one_thread_ms: float  # measured: a whole sample made by one thread, without the pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRecord:
    """The result of --mode loader."""

    schema: int
    mode: str
    machine: MachineRecord
    options: dict[str, Any]
    settings: Settings
    first_batch_s: float
    patches_per_s: Spread
    ms_per_batch: BatchTimes
    delivered_mb_per_s: float  # voxels of images and targets, 1e6 bytes
    bytes_per_patch: Reads
    processor: Processor
    memory_mb: Memory
    operators: OperatorCosts | None = None


def check_record(data: Any, *, source: str) -> LoaderRecord:
    """The record that the plain value `data` holds; DatasetError, naming `source`, if it is none."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise DatasetError(f"{source} should be a benchmark result of schema {SCHEMA}, got {schema!r}.")
    record = from_plain(LoaderRecord, data, source=source)
    speed, times = record.patches_per_s, record.ms_per_batch
    faults = {
        "patches_per_s is not ordered": not 0 < speed.min <= speed.median <= speed.max,
        "patches_per_s has no repeats": not speed.repeats,
        "ms_per_batch is not ordered": not 0 < times.p50 <= times.p90 <= times.p95 <= times.p99,
        "bytes_per_patch.cut is negative": record.bytes_per_patch.cut < 0,
        "an operator's mean is not its probability times its cost": any(
            abs(row.mean_ms - row.probability * row.applied_ms) > 1e-6
            for row in (record.operators.rows if record.operators else ())
        ),
    }
    if wrong := [fault for fault, found in faults.items() if found]:
        raise DatasetError(f"{source}: {'; '.join(wrong)}. Measure again.")
    return record


def portable_options(options: Any) -> dict[str, Any]:
    """The options by name, without the folders of one machine."""
    return {name: value for name, value in describe(options).items() if name not in PLACES_OF_ONE_MACHINE}


def batch_times(laps_s: Sequence[float]) -> BatchTimes:
    """Mean and percentiles of laps in seconds, in milliseconds."""
    laps = summarise(laps_s)
    return BatchTimes(
        mean=laps.mean_s * MS_PER_S,
        p50=laps.median_s * MS_PER_S,
        p90=laps.p90_s * MS_PER_S,
        p95=laps.p95_s * MS_PER_S,
        p99=laps.p99_s * MS_PER_S,
    )


def machine_record(gpu: str | None) -> MachineRecord:
    """This machine: processor, GPU, versions."""
    return MachineRecord(
        cpus=os.cpu_count() or 1,
        cpu=_processor_name(),
        architecture=platform.machine(),
        gpu=gpu,
        system=platform.release(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None}
        | ({} if gpu is None else _gpu_libraries()),
    )


def _gpu_libraries() -> dict[str, str]:
    """The versions of CUDA and cuDNN that torch was built with and runs on."""
    import torch

    found = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {name: str(version) for name, version in found.items() if version is not None}


def _processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
