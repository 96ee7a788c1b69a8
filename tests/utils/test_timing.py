"""The stopwatch keeps the right laps and waits before it looks."""

import pytest
import torch

from utils.timing import Stopwatch, summarise, time_calls, waiter


def test_percentiles_of_one_to_hundred() -> None:
    timing = summarise([float(lap) for lap in range(1, 102)])
    assert (timing.laps, timing.median_s, timing.p90_s, timing.p99_s) == (101, 51.0, 91.0, 100.0)
    assert (timing.mean_s, timing.min_s, timing.max_s) == (51.0, 1.0, 101.0)


def test_throughput_counts_slow_laps() -> None:
    assert summarise([1.0, 1.0, 1.0, 5.0]).per_second(4) == 2.0


def test_the_warm_up_is_not_kept() -> None:
    readings = iter([0.0, 100.0, 101.0, 103.0])
    stopwatch = Stopwatch(warm_up=1, clock=lambda: next(readings))
    stopwatch.start()
    for _ in range(3):
        stopwatch.lap()
    assert (stopwatch.timing().laps, stopwatch.timing().mean_s) == (2, 1.5)


def test_the_device_is_waited_for_before_every_reading() -> None:
    events = []
    stopwatch = Stopwatch(wait=lambda: events.append("wait"), clock=lambda: events.append("read") or 0.0)
    stopwatch.start()
    stopwatch.lap()
    assert events == ["wait", "read", "wait", "read"]


def test_time_calls_runs_the_warm_up_and_the_repeats() -> None:
    calls = []
    assert time_calls(lambda: calls.append(1), repeats=3, warm_up=2).laps == 3
    assert len(calls) == 5


def test_a_lap_before_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match="was not started"):
        Stopwatch().lap()


def test_no_lap_after_the_warm_up_is_refused() -> None:
    stopwatch = Stopwatch(warm_up=1)
    stopwatch.start()
    stopwatch.lap()
    with pytest.raises(ValueError, match="No lap was timed"):
        stopwatch.timing()


def test_the_cpu_needs_no_waiting() -> None:
    assert waiter("cpu")() is None


@pytest.mark.gpu
def test_a_cuda_kernel_is_timed_to_its_end() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    matrix = torch.rand(8192, 8192, device="cuda")
    timing = time_calls(lambda: matrix @ matrix, repeats=3, warm_up=2, wait=waiter("cuda"))
    unsynchronised = time_calls(lambda: matrix @ matrix, repeats=3, warm_up=2)
    assert timing.median_s > 2 * unsynchronised.median_s
