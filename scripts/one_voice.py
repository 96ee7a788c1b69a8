"""One process speaks for all; apart from `process_place.py`, so that a prediction needs no DALI."""

from __future__ import annotations

from lightning_fabric.utilities.rank_zero import rank_zero_only

from utils.run_log import say


@rank_zero_only
def say_once(message: str) -> None:
    """One line for the person at the terminal, from the process of rank 0 alone."""
    say(message)
