"""What benchmarks of training, prediction and preprocessing found, and the check of any result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.benchmark_record import (
    SCHEMA,
    BatchTimes,
    LoaderRecord,
    MachineRecord,
    Processor,
    Spread,
    check_record,
)
from utils.errors import DatasetError
from utils.storage import from_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What the options came to, for a network."""

    dataset: str
    configuration: str
    input: str  # real or synthetic
    augmentations: tuple[str, ...]  # of real input
    channels: int
    labels: int
    classes: int
    patch: tuple[int, int, int]
    batch_size: int
    strides: tuple[tuple[int, int, int], ...]
    filters: tuple[int, ...]
    outputs: int  # supervised resolutions
    parameters: int
    optimizer: str
    precision: str  # Lightning's name: 32-true, bf16-mixed, 16-mixed
    arithmetic: str  # of the convolutions: fp32, tf32, bf16, fp16
    layout: str
    compiled: bool
    device: str
    norm: str = "instance"
    processes: int = 1  # one per device, each with its own batches


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPeak:
    """The best of several square matrix products in one number type."""

    kind: str  # fp32, tf32, bf16, fp16
    size: int
    tflops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Floating-point operations of convolutions and matrix products, a multiplication and an addition as two.

    All of one device, also where several measure together. `share_of_peak` is operations per second over the
    matrix product's in the same number type.
    """

    operations: int  # of one batch: forward, and backward in training
    tflops: float  # per second, over the mean step
    peaks: tuple[MatrixPeak, ...]
    share_of_peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMemory:
    """In MB of 1e6 bytes, of the largest process.

    `peak_resident` is the host's, mapped volumes included; of the device `peak_allocated` is what tensors
    held in the timed steps, `peak_reserved` what torch had taken for them, `in_use` what all programs hold.
    """

    peak_resident: float
    peak_allocated: float | None
    peak_reserved: float | None
    in_use: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaTraining:
    """NVIDIA's figures: images/s of all GPUs and ms of the differences between the ends of consecutive steps.

    By the first process's clock; `patches_per_s` and `ms_per_step` go by the slowest's.
    """

    throughput_train: float
    latency_train_mean: float
    latency_train_90: float
    latency_train_95: float
    latency_train_99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaPrediction:
    """NVIDIA's figures of one forward pass per batch of patches: no window, no mirroring, no softmax.

    By the first process's clock; `patches_per_s` and `ms_per_pass` go by the slowest's.
    """

    throughput_predict: float
    latency_predict_mean: float
    latency_predict_90: float
    latency_predict_95: float
    latency_predict_99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecord:
    """The result of --mode train."""

    schema: int
    mode: str
    machine: MachineRecord
    options: dict[str, Any]
    settings: NetworkSettings
    first_step_s: float  # with all that is built or compiled at the first step
    patches_per_s: Spread
    ms_per_step: BatchTimes
    waiting_share: float | None  # of the time, for data; None with synthetic input
    arithmetic: Arithmetic
    memory_mb: NetworkMemory
    last_loss: float
    nvidia: NvidiaTraining
    processor: Processor | None = None  # of the host, in the timed steps


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpeed:
    """Whole volumes by sliding window, from the voxels in host memory to the probabilities there."""

    tta: bool  # mirrored views averaged as well
    volumes: int  # of all processes
    voxels: int  # of one volume, on average
    seconds_per_volume: float  # that one process needs: median over the repeats, of the slowest process
    voxels_per_s: float  # of all processes


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRecord:
    """The result of --mode predict."""

    schema: int
    mode: str
    machine: MachineRecord
    options: dict[str, Any]
    settings: NetworkSettings
    first_pass_s: float
    patches_per_s: Spread
    ms_per_pass: BatchTimes
    arithmetic: Arithmetic
    overlap: float
    windows_at_once: int
    whole_volumes: tuple[VolumeSpeed, ...]
    memory_mb: NetworkMemory
    nvidia: NvidiaPrediction
    processor: Processor | None = None  # of the host, in the timed passes


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessRecord:
    """The result of --mode preprocess: one pass over all cases into an empty folder."""

    schema: int
    mode: str
    machine: MachineRecord
    options: dict[str, Any]
    dataset: str
    configuration: str
    cases: int
    processes: int
    raw_mb: float
    written_mb: float
    survey_s: float  # every file checked and measured
    plan_s: float
    prepare_s: float  # every case cropped, resampled, normalised, written
    cases_per_s: float
    s_per_case: float
    peak_resident_mb: float  # this process and its workers, shared pages counted for each


Result = LoaderRecord | TrainRecord | PredictRecord | PreprocessRecord
RECORDS: Mapping[str, type[Any]] = {
    "train": TrainRecord,
    "predict": PredictRecord,
    "preprocess": PreprocessRecord,
}


def check_result(data: Any, *, source: str) -> Result:
    """The record of any mode that the plain value `data` holds; DatasetError, naming `source`, if none."""
    plain = data if isinstance(data, dict) else {}
    mode, schema = str(plain.get("mode")), plain.get("schema")
    if mode == "loader":
        return check_record(data, source=source)
    if mode not in RECORDS or schema != SCHEMA:
        raise DatasetError(
            f"{source} should be a benchmark result of schema {SCHEMA} and mode loader, "
            f"{', '.join(RECORDS)}; got schema {schema!r}, mode {mode}."
        )
    record = from_plain(RECORDS[mode], data, source=source)
    if wrong := [fault for fault, found in _faults(record).items() if found]:
        raise DatasetError(f"{source}: {'; '.join(wrong)}. Measure again.")
    return record


def _faults(record: TrainRecord | PredictRecord | PreprocessRecord) -> dict[str, bool]:
    if isinstance(record, PreprocessRecord):
        spent = record.survey_s + record.plan_s + record.prepare_s
        return {
            "no case was prepared": record.cases < 1,
            "s_per_case is not the steps' time over the cases": _differ(
                record.s_per_case * record.cases, spent
            ),
            "cases_per_s is not the inverse of s_per_case": _differ(
                record.cases_per_s * record.s_per_case, 1.0
            ),
        }
    if isinstance(record, TrainRecord):
        share = record.waiting_share
        own = {
            "waiting_share is not between 0 and 1": share is not None and not 0 <= share <= 1,
            "waiting_share and input do not agree": (share is None) != (record.settings.input == "synthetic"),
        }
        return own | _shared(record, record.ms_per_step, record.nvidia.throughput_train)
    own = {
        "whole_volumes are not one without and one with mirroring": [v.tta for v in record.whole_volumes]
        != [False, True],
        "voxels_per_s is not voxels over seconds": any(
            _differ(v.voxels_per_s * v.seconds_per_volume, v.voxels * record.settings.processes)
            for v in record.whole_volumes
        ),
    }
    return own | _shared(record, record.ms_per_pass, record.nvidia.throughput_predict)


def _shared(record: TrainRecord | PredictRecord, times: BatchTimes, throughput: float) -> dict[str, bool]:
    speed, work = record.patches_per_s, record.arithmetic
    kinds = [peak.kind for peak in work.peaks]
    return {
        "patches_per_s is not ordered": not 0 < speed.min <= speed.median <= speed.max,
        "patches_per_s has no repeats": not speed.repeats,
        "the percentiles are not ordered": not 0 < times.p50 <= times.p90 <= times.p95 <= times.p99,
        "NVIDIA's throughput is not positive": not throughput > 0,
        "no operation was counted": work.operations < 1,
        "the arithmetic's number type has no measured peak": record.settings.arithmetic not in kinds,
        "tflops is not the operations over the mean time": _differ(
            work.tflops * times.mean / 1e3, work.operations / 1e12
        ),
    }


def _differ(one: float, other: float) -> bool:
    """By more than rounding."""
    return abs(one - other) > 1e-6 * max(abs(one), abs(other))
