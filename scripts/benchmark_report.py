"""The result of a loader benchmark as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from scripts.benchmark_record import LoaderRecord, OperatorCosts

MB = 1e6  # bytes


def show(record: LoaderRecord, *, to_stderr: bool) -> None:
    """Print what was measured, on standard output or standard error."""
    console = Console(stderr=to_stderr)
    settings = record.settings
    title = (
        f"{settings.dataset} {settings.configuration}: patch {'x'.join(map(str, settings.patch))}, "
        f"batch {settings.batch_size}, {settings.num_workers} threads, {settings.device}, "
        f"augmentations in: {settings.augment_in}"
    )
    table = Table("figure", title=title, title_justify="left")
    table.add_column("value", justify="right")
    for name, value in _figures(record):
        table.add_row(name, value)
    console.print(table)
    if record.operators is not None:
        console.print(_operator_table(record.operators))


def _figures(record: LoaderRecord) -> list[tuple[str, str]]:
    speed, times, used = record.patches_per_s, record.ms_per_batch, record.processor
    reads, memory = record.bytes_per_patch, record.memory_mb
    figures = [
        ("patches/s, median (min to max)", f"{speed.median:.2f} ({speed.min:.2f} to {speed.max:.2f})"),
        ("ms per batch, mean", f"{times.mean:.1f}"),
        (
            "ms per batch, 50 / 90 / 95 / 99 %",
            f"{times.p50:.1f} / {times.p90:.1f} / {times.p95:.1f} / {times.p99:.1f}",
        ),
        ("first batch, s", f"{record.first_batch_s:.2f}"),
        ("voxels delivered, MB/s", f"{record.delivered_mb_per_s:.1f}"),
        ("stored voxels cut, MB per patch", f"{reads.cut / MB:.3f}"),
        ("read from the device, MB per patch", _in_mb(reads.from_device)),
        ("read by calls, MB per patch", _in_mb(reads.by_calls)),
        ("processor time, ms per patch", f"{used.ms_per_patch:.1f}"),
        (
            "cores busy: this process, the machine",
            f"{used.cores_busy:.2f}, {used.machine_cores_busy:.2f} of {record.machine.cpus}",
        ),
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
