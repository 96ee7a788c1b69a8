"""Numbers outside their range are refused by the name of their option."""

import math

import pytest

from utils.errors import UserError
from utils.ranges import check_jobs, check_number


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (None, {"least": 1}),
        (1, {"least": 1}),
        (0.5, {"above": 0, "below": 1}),
        (-3.0, {}),
        (2**62, {"least": 0}),
    ],
)
def test_what_lies_in_the_range_is_taken(value: float | None, bounds: dict[str, float]) -> None:
    check_number("rate", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "wish"),
    [
        (0, {"least": 1}, "at least 1, got 0"),
        (0.0, {"above": 0}, "above 0, got 0.0"),
        (1.0, {"least": 0, "below": 1}, "at least 0 and below 1, got 1.0"),
        (math.nan, {"least": 0}, "at least 0, got nan"),
        (math.inf, {"least": 0}, "at least 0, got inf"),
        (math.nan, {}, "a finite number, got nan"),
    ],
)
def test_what_lies_outside_is_refused(value: float, bounds: dict[str, float], wish: str) -> None:
    with pytest.raises(UserError, match=f"--rate should be {wish}"):
        check_number("rate", value, **bounds)


def test_no_job_at_all_is_refused_and_any_other_number_taken() -> None:
    for n_jobs in (-2, -1, 1, 8):
        check_jobs(n_jobs)
    with pytest.raises(UserError, match="--n_jobs is 0; give a number of processes, or -1"):
        check_jobs(0)
