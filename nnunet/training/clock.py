"""How far a run is: by its steps, or by the time it was given."""

from __future__ import annotations

import time
from typing import final

SECONDS_PER_MINUTE = 60.0


@final
class RunClock:
    """Counts the seconds of a run over all its restarts; `time_budget` is in minutes."""

    def __init__(self, *, total_steps: int, time_budget: float | None) -> None:
        self.total_steps = total_steps
        self.time_budget = time_budget
        self.earlier_seconds = 0.0
        self._started = time.monotonic()

    def start(self) -> None:
        """Start counting; the seconds before a restart are in `earlier_seconds`."""
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Seconds since training began."""
        return self.earlier_seconds + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """0 to 1: by steps or by the time budget, whichever is further."""
        by_steps = step / max(self.total_steps, 1)
        if self.time_budget is None:
            return by_steps
        return max(by_steps, self.seconds() / (self.time_budget * SECONDS_PER_MINUTE))

    def is_over(self) -> bool:
        """Whether a time budget was given and is spent."""
        return self.time_budget is not None and self.seconds() >= self.time_budget * SECONDS_PER_MINUTE
