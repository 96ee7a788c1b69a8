"""Seconds per case of our preprocessing, beside nnU-Net v2's: one JSON line, the steps apart.

python benchmarks/preprocess_speed.py --data RAW --task 101 --spacing 1.5 0.8 0.8 --n_jobs 2

`survey_s` (check, measure) stands beside nnU-Net's fingerprint, `prepare_s` beside its preprocessing; as
there, each step starts worker processes of its own, and their imports count. What is written is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from joblib.externals.loky import get_reusable_executor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_preprocessing.planners import PlannerOptions  # noqa: E402
from data_preprocessing.workers import prepare_cases  # noqa: E402
from scripts import preprocess_steps as steps  # noqa: E402
from scripts.preprocess import PreprocessOptions  # noqa: E402
from scripts.preprocess_plans import choose  # noqa: E402
from utils.errors import DatasetError  # noqa: E402

GIB = 2**30  # bytes
PERIOD_S = 0.25  # between two looks at the memory


class Step:
    """A block that is measured: seconds by the clock, of processors, and the largest memory meanwhile.

    Processor seconds and memory are those of this process and all its children. A page that several processes
    share counts once (PSS).
    """

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.processor_s = 0.0
        self.peak_bytes = 0
        self._started = (0.0, 0.0)
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Step:
        self._started = (time.perf_counter(), _processor_s())
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        # Children count towards the processor time once they have ended.
        get_reusable_executor().shutdown(wait=True)
        clock_s, processor_s = self._started
        self.wall_s, self.processor_s = time.perf_counter() - clock_s, _processor_s() - processor_s
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(PERIOD_S):
            self.peak_bytes = max(self.peak_bytes, proportional_bytes())


def proportional_bytes() -> int:
    """What this process and its children hold now, shared pages divided among those that share them."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            continue
    return total


def _processor_s() -> float:
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def measure(wanted: PreprocessOptions) -> dict[str, Any]:
    """Every step of preprocess.py once, into the empty folder `wanted.results`."""
    survey, prepare = Step(), Step()
    with survey:
        work = steps.open_work(wanted)
        found = steps.survey(work, wanted)
    started = time.perf_counter()
    chosen = choose(work, found, wanted)
    recipe, todo = steps.start_folder(chosen, found, wanted)
    plan_s = time.perf_counter() - started
    with prepare:
        outcomes = prepare_cases(todo, recipe, num_jobs=wanted.n_jobs)
    if failed := [outcome for outcome in outcomes if outcome.error]:
        raise DatasetError(f"{len(failed)} of {len(outcomes)} cases failed. {failed[0].error}")
    cases = len(outcomes)
    return {
        "dataset": work.dataset.name,
        "cases": cases,
        "configuration": chosen.plan.configuration,
        "spacing_mm": chosen.plan.spacing_mm,
        "resampling": chosen.plan.resampling,
        "dtype": wanted.dtype,
        "processes": wanted.n_jobs,
        "survey_s": survey.wall_s,
        "plan_s": plan_s,
        "prepare_s": prepare.wall_s,
        "whole_s": survey.wall_s + plan_s + prepare.wall_s,
        "survey_s_per_case": survey.wall_s / cases,
        "prepare_s_per_case": prepare.wall_s / cases,
        "whole_s_per_case": (survey.wall_s + plan_s + prepare.wall_s) / cases,
        "survey_processor_s": survey.processor_s,
        "prepare_processor_s": prepare.processor_s,
        "survey_peak_pss_gib": survey.peak_bytes / GIB,
        "prepare_peak_pss_gib": prepare.peak_bytes / GIB,
        "bytes_per_case": sum(outcome.num_bytes for outcome in outcomes) / cases,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Seconds per case of our preprocessing, step by step.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the raw dataset")
    parser.add_argument("--task", required=True)
    parser.add_argument("--planner", default="default", help="as in preprocess.py")
    parser.add_argument("--resampling", help="as in preprocess.py")
    parser.add_argument("--spacing", type=float, nargs=3, help="target spacing [mm], z y x")
    parser.add_argument("--dtype", default="float32", help="as in preprocess.py; nnU-Net writes float32")
    parser.add_argument("--n_jobs", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Measure once and print the result."""
    chosen = parse_arguments()
    planner = PlannerOptions(
        planner=chosen.planner,
        resampling=chosen.resampling,
        overwrite_target_spacing=None if chosen.spacing is None else tuple(chosen.spacing),
    )
    with tempfile.TemporaryDirectory(prefix="preprocess_speed_") as folder:
        wanted = PreprocessOptions(
            data=chosen.data,
            results=Path(folder),
            task=chosen.task,
            dtype=chosen.dtype,
            n_jobs=chosen.n_jobs,
            plan_name="default",
            planner=planner,
        )
        print(json.dumps(measure(wanted)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
