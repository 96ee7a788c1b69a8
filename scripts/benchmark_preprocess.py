"""The time of preprocessing: every step of preprocess.py once, into an empty temporary folder."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

import psutil

from data_preprocessing.planners import PlannerOptions
from data_preprocessing.workers import prepare_cases
from scripts import benchmark_record as records
from scripts import preprocess_steps as steps
from scripts.benchmark_result import PreprocessRecord
from scripts.preprocess import PreprocessOptions
from scripts.preprocess_plans import choose
from utils.errors import DatasetError
from utils.run_log import say

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions

MB = 1e6  # bytes
PERIOD_S = 0.05  # between two looks at the memory


@final
class MemoryWatch:
    """The largest sum of resident bytes of this process and its children, seen every 50 ms."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look once more, and end."""
        self._over.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, resident_bytes())

    def _watch(self) -> None:
        while not self._over.wait(PERIOD_S):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    """What this process and its children hold now; a page that several share counts for each."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
    return total


@contextmanager
def watched_memory() -> Iterator[MemoryWatch]:
    """A watch that looks while the block runs."""
    watch = MemoryWatch()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def measure(options: BenchmarkOptions) -> PreprocessRecord:
    """One pass over all training cases; what it writes is deleted."""
    with tempfile.TemporaryDirectory(prefix="benchmark_preprocess_") as folder:
        return _measure(options, Path(folder))


def _measure(options: BenchmarkOptions, folder: Path) -> PreprocessRecord:
    wanted = PreprocessOptions(
        data=options.data,
        results=folder,
        task=options.task,
        dim=options.dim,
        n_jobs=options.n_jobs,
        planner=PlannerOptions(preset=options.preset),
    )
    with watched_memory() as watch:
        started = time.perf_counter()
        work = steps.open_work(wanted)
        found = steps.survey(work, wanted)
        surveyed = time.perf_counter()
        chosen = choose(work, found, wanted)
        recipe, todo = steps.start_folder(chosen, found, wanted)
        planned = time.perf_counter()
        outcomes = prepare_cases(todo, recipe, num_jobs=options.n_jobs)
        ended = time.perf_counter()
    if failed := [f"{outcome.case_id}: {outcome.error}" for outcome in outcomes if outcome.error]:
        raise DatasetError(f"{len(failed)} of {len(outcomes)} cases failed. {failed[0]}")
    cases = len(outcomes)
    say(f"{cases} cases in {ended - started:.1f} s")
    raw = [file for case in work.cases for file in (*case.images, *([case.label] if case.label else []))]
    return PreprocessRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(None),
        options=records.portable_options(options),
        dataset=work.dataset.name,
        configuration=chosen.plan.configuration,
        cases=cases,
        processes=options.n_jobs if options.n_jobs > 0 else psutil.cpu_count() or 1,
        raw_mb=sum(path.stat().st_size for path in set(raw)) / MB,
        written_mb=sum(path.stat().st_size for path in work.folder.iterdir() if path.is_file()) / MB,
        survey_s=surveyed - started,
        plan_s=planned - surveyed,
        prepare_s=ended - planned,
        cases_per_s=cases / (ended - started),
        s_per_case=(ended - started) / cases,
        peak_resident_mb=watch.peak_bytes / MB,
    )
