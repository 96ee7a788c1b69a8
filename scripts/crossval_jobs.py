"""Trainings of folds as processes of their own, one after the other or one per GPU at a time."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from utils.run_log import say

MAIN = Path(__file__).resolve().parents[1] / "main.py"
OUTPUT = "output.log"  # in the folder of a fold: all that its training said
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldJob:
    """The training of one fold: the words for main.py, and its results folder."""

    fold: int
    words: tuple[str, ...]
    folder: Path


class FoldTrainer(Protocol):
    """Whoever trains folds."""

    def train(self, job: FoldJob, devices: str | None) -> int:
        """Train with the GPUs that are named (None: all there are), and return the exit status."""
        ...

    def stop(self) -> None:
        """End what still runs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Places for trainings that run at the same time: the GPUs that each may see, None for all."""

    devices: tuple[str | None, ...]

    @staticmethod
    def for_gpus(visible: Sequence[str], per_fold: int, wanted: int | None) -> Seats:
        """As many places as `wanted`, unset as many as the visible GPUs have room for; at least one.

        Each has `per_fold` GPUs of its own; places beyond that share them in turn. Without a GPU, or with a
        single place, a training sees what this process sees.
        """
        blocks = [
            ",".join(visible[start : start + per_fold])
            for start in range(0, len(visible) - per_fold + 1, per_fold)
        ]
        count = wanted or max(len(blocks), 1)
        if count == 1 or not blocks:
            return Seats(devices=(None,) * count)
        return Seats(devices=tuple(blocks[place % len(blocks)] for place in range(count)))


def visible_gpus(device: str) -> tuple[str, ...]:
    """The names of the GPUs that a training may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return tuple(named[:count]) or tuple(map(str, range(count)))


def run_jobs(jobs: Sequence[FoldJob], seats: Seats, trainer: FoldTrainer) -> Iterator[tuple[FoldJob, int]]:
    """Every job with its exit status, as it ends; a failed one does not keep the others from running."""
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for devices in seats.devices:
        free.put(devices)

    def work(job: FoldJob) -> int:
        devices = free.get()
        try:
            return trainer.train(job, devices)
        finally:
            free.put(devices)

    executor = ThreadPoolExecutor(max_workers=len(seats.devices))
    try:
        ends = {executor.submit(work, job): job for job in jobs}
        for end in as_completed(ends):
            yield ends[end], end.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # or the next one would take the free place
        trainer.stop()
        executor.shutdown(wait=True)


@final
class FoldProcesses:
    """Trains every fold in a process of its own."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()

    def train(self, job: FoldJob, devices: str | None) -> int:
        """Run main.py, keep what it says in the fold's folder, and repeat it behind the fold's number."""
        environment = os.environ | ({} if devices is None else {VISIBLE: devices})
        command = [sys.executable, str(MAIN), *job.words]
        job.folder.mkdir(parents=True, exist_ok=True)
        with (
            (job.folder / OUTPUT).open("a", encoding="utf-8") as kept,
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            self._running.add(process)
            assert process.stdout is not None
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                say(f"fold {job.fold}: {line.rstrip()}")
        self._running.discard(process)
        return process.returncode

    def stop(self) -> None:
        """End the trainings that still run, because this process was interrupted."""
        for process in tuple(self._running):
            process.terminate()
