"""A stopwatch that waits for the device, skips the warm-up and reports median and percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Laps in seconds, without the warm-up."""

    laps: int
    mean_s: float
    median_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    min_s: float
    max_s: float

    def per_second(self, items_per_lap: float) -> float:
        """Throughput over the whole run: items divided by the mean, so that slow laps count."""
        return items_per_lap / self.mean_s


def summarise(laps_s: Sequence[float]) -> Timing:
    """The Timing of some laps in seconds; percentiles interpolate linearly between laps."""
    if not laps_s:
        raise ValueError("No lap was timed after the warm-up; run more iterations or a shorter warm-up.")
    median, p90, p95, p99 = (float(value) for value in np.percentile(laps_s, [50, 90, 95, 99]))
    return Timing(
        laps=len(laps_s),
        mean_s=float(np.mean(laps_s)),
        median_s=median,
        p90_s=p90,
        p95_s=p95,
        p99_s=p99,
        min_s=min(laps_s),
        max_s=max(laps_s),
    )


def waiter(device: str) -> Callable[[], None]:
    """What to call before reading the clock: waits until `device` ("cpu", "cuda", "cuda:1") is idle."""
    if not device.startswith("cuda"):
        return _already_done
    import torch

    return lambda: torch.cuda.synchronize(device)


def _already_done() -> None:
    """The CPU has finished when the call returns."""


class Stopwatch:
    """Times laps; the first `warm_up` of them are not kept.

    `wait` runs before every reading of the clock (see `waiter`): a CUDA call returns before its work is done.
    """

    def __init__(
        self,
        *,
        warm_up: int = 0,
        wait: Callable[[], None] = _already_done,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._warm_up = warm_up
        self._wait = wait
        self._clock = clock
        self._laps_s: list[float] = []
        self._last_s: float | None = None

    def start(self) -> None:
        """Begin a lap here; time since the previous lap is not counted."""
        self._wait()
        self._last_s = self._clock()

    def lap(self) -> None:
        """End the running lap and begin the next."""
        if self._last_s is None:
            raise ValueError("The stopwatch was not started.")
        self._wait()
        now = self._clock()
        self._laps_s.append(now - self._last_s)
        self._last_s = now

    def timing(self) -> Timing:
        """The laps after the warm-up; ValueError if there are none."""
        return summarise(self._laps_s[self._warm_up :])


def time_calls(
    action: Callable[[], object],
    *,
    repeats: int,
    warm_up: int = 0,
    wait: Callable[[], None] = _already_done,
) -> Timing:
    """Time `repeats` calls of `action` after `warm_up` calls that are not counted."""
    stopwatch = Stopwatch(warm_up=warm_up, wait=wait)
    stopwatch.start()
    for _ in range(warm_up + repeats):
        action()
        stopwatch.lap()
    return stopwatch.timing()
