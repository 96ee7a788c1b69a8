"""How far a run is."""

import pytest

from nnunet.training import clock as clock_module
from nnunet.training.clock import RunClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be moved by the test."""
    time = [1000.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: time[0])
    return time


def test_without_a_budget_progress_is_by_steps(now: list[float]) -> None:
    clock = RunClock(total_steps=8, time_budget=None)
    now[0] += 1e6
    assert clock.progress(2) == 0.25


@pytest.mark.parametrize(("seconds", "expected"), [(30, 0.5), (15, 0.25), (3, 0.125), (90, 1.5)])
def test_with_a_budget_the_further_of_the_two_counts(
    now: list[float], seconds: float, expected: float
) -> None:
    clock = RunClock(total_steps=8, time_budget=1.0)
    now[0] += seconds
    assert clock.progress(1) == expected


def test_seconds_before_a_restart_are_counted_and_those_of_the_set_up_are_not(now: list[float]) -> None:
    clock = RunClock(total_steps=8, time_budget=1.0)
    clock.earlier_seconds = 20.0
    now[0] += 500
    clock.start()
    now[0] += 10
    assert clock.seconds() == 30
    assert clock.progress(0) == 0.5


def test_a_run_of_no_steps_is_at_its_end_after_one() -> None:
    assert RunClock(total_steps=0, time_budget=None).progress(1) == 1
