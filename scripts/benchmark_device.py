"""A device's own clock, the peak of its matrix products, and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch

from nnunet.precision import half_type
from scripts.benchmark_result import MatrixPeak, NetworkMemory
from utils.timing import waiter
from utils.usage import peak_resident_bytes

MB = 1e6  # bytes
MS_PER_S = 1e3
PEAK_SIZE = {"cuda": 4096, "cpu": 1024}  # edge of the square matrices
PEAK_WARMUP, PEAK_ROUNDS = 3, 10
KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@final
@dataclass(eq=False)
class DeviceClock:
    """Marks on the device's own time line: CUDA events, which wait for nothing, or the host's clock."""

    device: str
    wait: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.wait = waiter(self.device)

    def mark(self) -> Any:
        """A mark behind all work that was given to the device so far."""
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """When each mark was reached, in seconds since the first; waits for the device."""
        self.wait()
        if self.device == "cpu":
            return [mark - marks[0] for mark in marks]
        return [marks[0].elapsed_time(mark) / MS_PER_S for mark in marks]


def arithmetic_of(device: str, half: torch.dtype | None) -> str:
    """The number type that convolutions multiply in: fp32, tf32, bf16 or fp16."""
    if half is not None:
        return KINDS[half]
    return "tf32" if device == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def matrix_peaks(device: str) -> tuple[MatrixPeak, ...]:
    """The best of ten square products for each number type that the device has."""
    half = half_type(device)
    kinds: dict[str, torch.dtype] = {"fp32": torch.float32}
    if device == "cuda":
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    if half is not None:
        kinds[KINDS[half]] = half
    return tuple(_matrix_peak(device, kind, dtype) for kind, dtype in kinds.items())


def _matrix_peak(device: str, kind: str, dtype: torch.dtype) -> MatrixPeak:
    size, clock = PEAK_SIZE[device], DeviceClock(device)
    generator = torch.Generator(device).manual_seed(0)
    # Random voxels: products of zeros need less power and run faster than real ones.
    one, other = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    with _float32_products("high" if kind == "tf32" else "highest"):
        for _ in range(PEAK_WARMUP):
            torch.mm(one, other)
        marks = [clock.mark()]
        for _ in range(PEAK_ROUNDS):
            torch.mm(one, other)
            marks.append(clock.mark())
        seconds = clock.seconds(marks)
    best_s = min(end - start for start, end in zip(seconds, seconds[1:], strict=False))
    return MatrixPeak(kind=kind, size=size, tflops=2 * size**3 / best_s / 1e12)


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def forget_peak_memory(device: str) -> None:
    """From now on the device's peak is counted anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory_now(device: str) -> NetworkMemory:
    """The peaks so far; what of it belongs to the device is None on a CPU."""
    host = peak_resident_bytes() / MB
    if device == "cpu":
        return NetworkMemory(peak_resident=host, peak_allocated=None, peak_reserved=None, in_use=None)
    free, total = torch.cuda.mem_get_info()
    return NetworkMemory(
        peak_resident=host,
        peak_allocated=torch.cuda.max_memory_allocated() / MB,
        peak_reserved=torch.cuda.max_memory_reserved() / MB,
        in_use=(total - free) / MB,
    )


def largest_memory(found: Sequence[NetworkMemory]) -> NetworkMemory:
    """The largest of each figure over the processes; `in_use` counts all that share a device."""

    def largest(name: str) -> float | None:
        known = [value for one in found if (value := getattr(one, name)) is not None]
        return max(known, default=None)

    return NetworkMemory(
        peak_resident=max(one.peak_resident for one in found),
        peak_allocated=largest("peak_allocated"),
        peak_reserved=largest("peak_reserved"),
        in_use=largest("in_use"),
    )
