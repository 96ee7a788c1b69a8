"""Numbers that a user gives, checked where they are taken in; NaN lies in no range."""

from __future__ import annotations

import math

from utils.errors import UserError


def check_number(
    option: str,
    value: float | None,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """UserError unless `value` is at least `least`, above `above`, below `below`, finite; None is unset."""
    if value is None or (value >= least and above < value < below and math.isfinite(value)):
        return
    wishes = []
    if least > -math.inf:
        wishes.append(f"at least {least:g}")
    if above > -math.inf:
        wishes.append(f"above {above:g}")
    if below < math.inf:
        wishes.append(f"below {below:g}")
    wished = " and ".join(wishes) or "a finite number"
    raise UserError(f"--{option} should be {wished}, got {value}.")


def check_jobs(n_jobs: int) -> None:
    """UserError for no job at all; below 0 it counts from the number of cores, -1 being all of them."""
    if n_jobs == 0:
        raise UserError("--n_jobs is 0; give a number of processes, or -1 for one per core.")
