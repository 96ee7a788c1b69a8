"""Samples made ahead of their use, on threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

Made = TypeVar("Made")


@final
class AheadOfUse(Generic[Made]):
    """Calls `make(0)`, `make(1)`, ... on `threads` threads, `ahead` of the number asked for.

    Samples are taken one by one in the order asked, and each thread takes the next as soon as it is free: a
    batch waits for its own samples, never for the slowest of every operator. What `make` raises is raised
    where the sample is taken. `make` must release the interpreter lock for its heavy part.
    """

    def __init__(self, make: Callable[[int], Made], *, threads: int, ahead: int) -> None:
        self.make = make
        self.ahead = ahead
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="samples")
        self._waiting: dict[int, Future[Made]] = {}
        self._asked = 0
        self._failed: Exception | None = None

    def take(self, number: int) -> Made:
        """The sample `number`; numbers count upwards from 0, each taken once."""
        while self._asked <= number + self.ahead:
            self._waiting[self._asked] = self._threads.submit(self.make, self._asked)
            self._asked += 1
        if self._failed is not None:  # DALI may ask for what follows a failure; it has no other answer
            raise self._failed
        try:
            return self._waiting.pop(number).result()
        except Exception as error:
            self._failed = error
            raise

    def close(self) -> None:
        """Drop what was made and not taken, and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
