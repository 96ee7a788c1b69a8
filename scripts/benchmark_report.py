"""The result of a benchmark as tables for people and as DLLogger lines for machines."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.benchmark_record import (
    BatchTimes,
    LoaderRecord,
    MachineRecord,
    OperatorCosts,
    Processor,
    Spread,
)
from scripts.benchmark_result import (
    Arithmetic,
    NetworkMemory,
    NetworkSettings,
    NvidiaPrediction,
    NvidiaTraining,
    PredictRecord,
    PreprocessRecord,
    Result,
    TrainRecord,
)
from utils.run_log import RUN_SUMMARY, RunLog

MB = 1e6  # bytes
PER_CENT = 100

Row = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a result, as the log names it."""

    name: str
    unit: str
    value: float


def show(result: Result, *, to_stderr: bool) -> None:
    """Print what was measured, on standard output or standard error."""
    console = Console(stderr=to_stderr)
    table = Table("figure", title=_title(result), title_justify="left")
    table.add_column("value", justify="right")
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    if isinstance(result, LoaderRecord) and result.operators is not None:
        console.print(_operator_table(result.operators))


def write_log(path: Path, result: Result) -> None:
    """Append options, units and figures to the log at `path`; NVIDIA's names where the figure is theirs."""
    with RunLog(path) as run_log:
        run_log.log("PARAMETER", result.options)
        metrics = metrics_of(result)
        for metric in metrics:
            run_log.metadata(metric.name, {"unit": metric.unit})
        run_log.log(RUN_SUMMARY, {metric.name: metric.value for metric in metrics})


def metrics_of(result: Result) -> list[Metric]:
    """The figures that are worth a line in a log."""
    if isinstance(result, PreprocessRecord):
        return [
            Metric(name="cases_per_s", unit="cases/s", value=result.cases_per_s),
            Metric(name="s_per_case", unit="s", value=result.s_per_case),
            Metric(name="peak_resident_mb", unit="MB", value=result.peak_resident_mb),
        ]
    speed = Metric(name=f"{result.mode}/patches_per_s", unit="patches/s", value=result.patches_per_s.median)
    peak = Metric(name="peak_resident_mb", unit="MB", value=result.memory_mb.peak_resident)
    if isinstance(result, LoaderRecord):
        return [speed, Metric(name="loader/ms_per_batch", unit="ms", value=result.ms_per_batch.mean), peak]
    metrics = [*_nvidia_metrics(result.nvidia), speed, peak]
    if result.processor is not None:
        used = result.processor.ms_per_patch
        metrics.append(Metric(name="processor_ms_per_patch", unit="ms", value=used))
    metrics.append(Metric(name="tflops", unit="TFLOP/s", value=result.arithmetic.tflops))
    metrics.append(Metric(name="share_of_peak", unit="%", value=PER_CENT * result.arithmetic.share_of_peak))
    if result.memory_mb.peak_allocated is not None:
        metrics.append(Metric(name="peak_allocated_mb", unit="MB", value=result.memory_mb.peak_allocated))
    if isinstance(result, TrainRecord) and result.waiting_share is not None:
        metrics.append(Metric(name="waiting_percent", unit="%", value=PER_CENT * result.waiting_share))
    if isinstance(result, PredictRecord):
        for speed in result.whole_volumes:
            name = f"predict/s_per_volume{'_tta' if speed.tta else ''}"
            metrics.append(Metric(name=name, unit="s", value=speed.seconds_per_volume))
    return metrics


def _nvidia_metrics(nvidia: NvidiaTraining | NvidiaPrediction) -> list[Metric]:
    return [
        Metric(
            name=field.name,
            unit="images/s" if field.name.startswith("throughput") else "ms",
            value=getattr(nvidia, field.name),
        )
        for field in fields(nvidia)
    ]


def _title(result: Result) -> str:
    if isinstance(result, PreprocessRecord):
        return f"{result.dataset} {result.configuration}: {result.cases} cases, {result.processes} processes"
    settings = result.settings
    several = f" x {settings.processes} processes" if settings.processes > 1 else ""
    start = (
        f"{settings.dataset} {settings.configuration}: patch {'x'.join(map(str, settings.patch))}, "
        f"batch {settings.batch_size}{several}, "
    )
    if isinstance(settings, NetworkSettings):
        compiled = ", compiled" if settings.compiled else ""
        return (
            f"{start}{settings.input} input, {settings.precision}, {settings.layout}, "
            f"{settings.norm} norm{compiled}, {settings.parameters / 1e6:.2f} M parameters, {settings.device}"
        )
    return (
        f"{start}{settings.num_workers} threads, {settings.device}, augmentations in: {settings.augment_in}"
    )


def _rows(result: Result) -> list[Row]:
    if isinstance(result, LoaderRecord):
        return _loader_rows(result)
    if isinstance(result, TrainRecord):
        return _train_rows(result)
    return _predict_rows(result) if isinstance(result, PredictRecord) else _preprocess_rows(result)


def _speed_rows(speed: Spread, times: BatchTimes, what: str) -> list[Row]:
    return [
        ("patches/s, median (min to max)", f"{speed.median:.2f} ({speed.min:.2f} to {speed.max:.2f})"),
        (f"ms per {what}, mean", f"{times.mean:.1f}"),
        (
            f"ms per {what}, 50 / 90 / 95 / 99 %",
            f"{times.p50:.1f} / {times.p90:.1f} / {times.p95:.1f} / {times.p99:.1f}",
        ),
    ]


def _train_rows(record: TrainRecord) -> list[Row]:
    nvidia, share = record.nvidia, record.waiting_share
    return [
        *_speed_rows(record.patches_per_s, record.ms_per_step, "step"),
        ("first step, s", f"{record.first_step_s:.2f}"),
        ("waiting for data, %", "none is loaded" if share is None else f"{PER_CENT * share:.1f}"),
        *_arithmetic_rows(record.arithmetic, record.settings),
        *_processor_rows(record.processor, record.machine),
        *_memory_rows(record.memory_mb),
        ("loss of the last step", f"{record.last_loss:.3f}"),
        (
            "NVIDIA: images/s; ms mean / 90 / 95 / 99 %",
            f"{nvidia.throughput_train:.2f}; {nvidia.latency_train_mean:.1f} / "
            f"{nvidia.latency_train_90:.1f} / {nvidia.latency_train_95:.1f} / {nvidia.latency_train_99:.1f}",
        ),
    ]


def _predict_rows(record: PredictRecord) -> list[Row]:
    nvidia = record.nvidia
    volumes = [
        (
            f"whole volume{', mirrored views' if speed.tta else ''}: s; million voxels/s",
            f"{speed.seconds_per_volume:.3f}; {speed.voxels_per_s / 1e6:.3f}",
        )
        for speed in record.whole_volumes
    ]
    return [
        *_speed_rows(record.patches_per_s, record.ms_per_pass, "pass"),
        ("first pass, s", f"{record.first_pass_s:.2f}"),
        *volumes,
        *_arithmetic_rows(record.arithmetic, record.settings),
        *_processor_rows(record.processor, record.machine),
        *_memory_rows(record.memory_mb),
        (
            "NVIDIA: images/s; ms mean / 90 / 95 / 99 %",
            f"{nvidia.throughput_predict:.2f}; {nvidia.latency_predict_mean:.1f} / "
            f"{nvidia.latency_predict_90:.1f} / {nvidia.latency_predict_95:.1f} / "
            f"{nvidia.latency_predict_99:.1f}",
        ),
    ]


def _preprocess_rows(record: PreprocessRecord) -> list[Row]:
    return [
        ("cases/s", f"{record.cases_per_s:.2f}"),
        ("s per case", f"{record.s_per_case:.2f}"),
        (
            "check and measure, plan, prepare: s",
            f"{record.survey_s:.1f}, {record.plan_s:.2f}, {record.prepare_s:.1f}",
        ),
        ("raw, written: MB", f"{record.raw_mb:.1f}, {record.written_mb:.1f}"),
        ("peak resident memory with workers, MB", f"{record.peak_resident_mb:.0f}"),
    ]


def _arithmetic_rows(work: Arithmetic, settings: NetworkSettings) -> list[Row]:
    peaks = ", ".join(f"{peak.kind} {peak.tflops:.4g}" for peak in work.peaks)
    return [
        ("operations of a batch, TFLOP", f"{work.operations / 1e12:.4g}"),
        (
            f"TFLOP/s (share of the {settings.arithmetic} product's)",
            f"{work.tflops:.4g} ({PER_CENT * work.share_of_peak:.1f} %)",
        ),
        ("matrix products, TFLOP/s", peaks),
    ]


def _processor_rows(used: Processor | None, machine: MachineRecord) -> list[Row]:
    if used is None:
        return []
    busy = f"{used.cores_busy:.2f}, {used.machine_cores_busy:.2f} of {machine.cpus}"
    return [
        ("processor time, ms per patch", f"{used.ms_per_patch:.1f}"),
        ("cores busy: by this, in the machine", busy),
    ]


def _memory_rows(memory: NetworkMemory) -> list[Row]:
    rows = [("peak resident memory, MB", f"{memory.peak_resident:.0f}")]
    if memory.peak_allocated is not None:
        cells = (memory.peak_allocated, memory.peak_reserved or 0.0, memory.in_use or 0.0)
        rows.append(("GPU: tensors, reserved, in use: MB", ", ".join(f"{cell:.0f}" for cell in cells)))
    return rows


def _loader_rows(record: LoaderRecord) -> list[Row]:
    speed, times = record.patches_per_s, record.ms_per_batch
    reads, memory = record.bytes_per_patch, record.memory_mb
    figures = [
        *_speed_rows(speed, times, "batch"),
        ("first batch, s", f"{record.first_batch_s:.2f}"),
        ("voxels delivered, MB/s", f"{record.delivered_mb_per_s:.1f}"),
        ("stored voxels cut, MB per patch", f"{reads.cut / MB:.3f}"),
        ("read from the device, MB per patch", _in_mb(reads.from_device)),
        ("read by calls, MB per patch", _in_mb(reads.by_calls)),
        *_processor_rows(record.processor, record.machine),
        ("peak resident memory, MB", f"{memory.peak_resident:.0f}"),
    ]
    if memory.device_in_use is not None:
        figures.append(("GPU memory in use, MB", f"{memory.device_in_use:.0f}"))
    return figures


def _in_mb(number: float | None) -> str:
    return "unknown" if number is None else f"{number / MB:.3f}"


def _operator_table(costs: OperatorCosts) -> Table:
    table = Table(title="Milliseconds per patch on one core, or on the GPU", title_justify="left")
    table.add_column("step", no_wrap=True)
    table.add_column("in")
    for column in ("probability", "applied", "forced", "mean"):
        table.add_column(column, justify="right")
    for row in costs.rows:
        forced = "" if row.forced_ms is None else f"{row.forced_ms:.2f}"
        cells = (f"{row.probability:.3f}", f"{row.applied_ms:.2f}", forced, f"{row.mean_ms:.2f}")
        table.add_row(row.name, row.place, *cells)
    table.add_section()
    for name, cost_ms in (
        ("sum on the host", costs.host_ms),
        ("sum in the graph", costs.graph_ms),
        ("one thread, measured", costs.one_thread_ms),
    ):
        table.add_row(name, "", "", "", "", f"{cost_ms:.2f}")
    return table
