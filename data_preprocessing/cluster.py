"""Calls spread over the workers of a Dask cluster, through Dask's own client.

joblib's Dask backend is not used: it sends functions and records of this project as they are, and Dask's
scheduler unpickles every task. A scheduler that was started without the project drops them all, and joblib
waits for ever for what was dropped. Here a call travels as bytes that only a worker opens, so the scheduler
needs nothing of ours, and a call that is lost ends the run with a message.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import EnvironmentFault

CONNECT_SECONDS = 20
LOOK_SECONDS = 30  # between two looks whether any worker is left, and how long one may take to come back
WORK = "data_preprocessing.workers"  # the module whose functions the workers call


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The client of the Dask scheduler at `address`; None for None.

    The workers need this project on their PYTHONPATH, and the same folders under the same names.
    EnvironmentFault if package, scheduler or workers are missing, or the workers lack the project.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise EnvironmentFault(
            "--cluster needs the package distributed, here and on the workers: pip install distributed."
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"No Dask scheduler answers at --cluster {address}: {error}.") from error
    with client:
        _check_workers(client, address)
        yield client


def _check_workers(client: Any, address: str) -> None:
    if not client.ncores():
        raise EnvironmentFault(
            f"The Dask scheduler at {address} has no workers. Start some: {_start_command(address)}"
        )
    try:
        client.run(importlib.import_module, WORK)
    except ImportError as error:
        raise _lacks_project(address, error) from error


def _start_command(address: str) -> str:
    root = Path(__file__).resolve().parents[1]
    return f"PYTHONPATH={root} dask worker {address} --nthreads 1"


def _lacks_project(address: str, error: ImportError) -> EnvironmentFault:
    return EnvironmentFault(
        f"The workers of {address} cannot import {error.name}. Start them with this project: "
        f"{_start_command(address)}"
    )


def results_of(client: Any, calls: Sequence[Any]) -> Iterator[Any]:
    """The results of joblib's `delayed` calls, computed by the workers of `client`, as they come.

    The calls of a worker that dies are given to the others. EnvironmentFault where one call outlives several
    workers, where no worker is left, and where the scheduler gives calls up.
    """
    from distributed import CancelledError, KilledWorker

    address = client.scheduler.address
    payloads = [pickle.dumps(call) for call in calls]
    name = calls[0][0].__name__ if calls else ""
    futures = client.map(_caller(), payloads, key=name, pure=False)
    for future in _as_they_finish(client, futures):
        try:
            yield future.result()
        except KilledWorker as error:
            raise EnvironmentFault(
                f"Several workers of {address} died over one task, probably because memory ran out. Give "
                "each more memory, then start again; finished cases are kept."
            ) from error
        except CancelledError as error:
            raise EnvironmentFault(
                f"The Dask scheduler at {address} gave up a task ({error}). See its log, then start again; "
                "finished cases are kept."
            ) from error
        except ImportError as error:
            raise _lacks_project(address, error) from error


def _caller() -> Callable[[bytes], Any]:
    """A function that is in no module, so it travels by value and the scheduler can unpickle it."""

    def call(payload: bytes) -> Any:
        from pickle import loads

        function, positional, named = loads(payload)
        return function(*positional, **named)

    return call


def _as_they_finish(client: Any, futures: Sequence[Any]) -> Iterator[Any]:
    from distributed import as_completed

    pending = set(futures)
    while pending:
        try:
            for future in as_completed(list(pending), timeout=LOOK_SECONDS):
                pending.discard(future)
                yield future
        except TimeoutError:
            _expect_worker(client)


def _expect_worker(client: Any) -> None:
    try:
        client.wait_for_workers(1, timeout=LOOK_SECONDS)
    except TimeoutError as error:
        address = client.scheduler.address
        raise EnvironmentFault(
            f"No worker of {address} is left. Start some, then start again; finished cases are kept: "
            f"{_start_command(address)}"
        ) from error
