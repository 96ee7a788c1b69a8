"""The two passes over all cases in parallel processes, of this machine or of a Dask cluster.

What goes wrong in one case comes back as a value.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from data_preprocessing.cases import load_case
from data_preprocessing.cluster import results_of
from data_preprocessing.fingerprint import samples_per_case
from data_preprocessing.integrity import allowed_label_values
from data_preprocessing.manifest import CaseInputs, refuse_changed
from data_preprocessing.prepare import Mode, prepare_case, write_prepared
from data_preprocessing.survey import CaseSurvey, survey_case
from utils.contracts import Dataset, Plan, RawCase, Shape, Spacing
from utils.errors import EnvironmentFault, UserError
from utils.prepared_folder import CASE_FILES, case_file
from utils.run_log import progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is the same for every case of a run."""

    dataset: Dataset
    plan: Plan
    folder: Path
    mode: Mode
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseOutcome:
    """One prepared case in numbers; only `error` holds something where it failed."""

    case_id: str
    error: str = ""
    num_bytes: int = 0
    seconds: float = 0.0
    shape: Shape = (0, 0, 0)
    spacing_mm: Spacing = (0.0, 0.0, 0.0)  # of the raw case, in planned axes
    mean: float = 0.0
    std: float = 0.0

    def __str__(self) -> str:
        spacing = " x ".join(f"{value:.3g}" for value in self.spacing_mm)
        return (
            f"{self.case_id}: shape {' x '.join(map(str, self.shape))}, raw spacing {spacing} mm, "
            f"mean {self.mean:.3f}, std {self.std:.3f}, {self.seconds:.2f} s"
        )


def survey_cases(
    cases: Sequence[RawCase], dataset: Dataset, *, num_jobs: int, is_measured: bool, cluster: Any = None
) -> list[CaseSurvey]:
    """Check every case, and measure it where a fingerprint is wanted; in the order of `cases`.

    `cluster` is the client of `cluster.connected`: its workers do it instead of `num_jobs` processes.
    """
    num_samples = samples_per_case(len(cases)) if is_measured else 0
    declared = _without_cases(dataset)
    jobs = [delayed(survey_case)(case, declared, num_samples=num_samples) for case in cases]
    surveys = {
        survey.check.case_id: survey
        for survey in _run_parallel(jobs, num_jobs=num_jobs, label="Checking and measuring", cluster=cluster)
    }
    return [surveys[case.case_id] for case in cases]


def prepare_cases(
    cases: Sequence[tuple[RawCase, CaseInputs]], recipe: Recipe, *, num_jobs: int, cluster: Any = None
) -> list[CaseOutcome]:
    """Prepare and write every case; an error of one leaves the others alone.

    `cluster` is the client of a Dask cluster, as in `survey_cases`.
    """
    recipe = replace(recipe, dataset=_without_cases(recipe.dataset))
    jobs = [delayed(prepare_and_write)(case, inputs, recipe) for case, inputs in cases]
    outcomes = _run_parallel(jobs, num_jobs=num_jobs, label="Preparing", cluster=cluster)
    return sorted(outcomes, key=lambda outcome: outcome.case_id)


def prepare_and_write(case: RawCase, inputs: CaseInputs, recipe: Recipe) -> CaseOutcome:
    """The work of one process on one case."""
    start_s = time.perf_counter()
    try:
        refuse_changed(inputs)
        loaded = load_case(case, allowed_labels=allowed_label_values(recipe.dataset))
        arrays = prepare_case(loaded, recipe.plan, mode=recipe.mode)
        prepared = write_prepared(recipe.folder, case, arrays, dtype=recipe.dtype)
    except (UserError, OSError, MemoryError, ValueError, ArithmeticError) as error:
        return CaseOutcome(case_id=case.case_id, error=f"{type(error).__name__}: {error}")
    files = (case_file(recipe.folder, case.case_id, suffix) for suffix in CASE_FILES)
    mean = float(arrays.image.mean())
    return CaseOutcome(
        case_id=case.case_id,
        num_bytes=sum(path.stat().st_size for path in files if path.is_file()),
        seconds=time.perf_counter() - start_s,
        shape=prepared.shape,
        spacing_mm=prepared.footprint.oriented_spacing_mm,
        mean=mean,
        std=_deviation(arrays.image, mean),
    )


def _deviation(image: np.ndarray, mean: float) -> float:
    """The standard deviation of (C, D, H, W), slice by slice: nothing of its size is allocated."""
    planes = (plane - np.float32(mean) for channel in image for plane in channel)
    squares = sum(float(np.vdot(plane, plane)) for plane in planes)
    return (squares / image.size) ** 0.5


def _without_cases(dataset: Dataset) -> Dataset:
    """The declarations only: the lists of cases would travel along with every single case."""
    return replace(dataset, training=(), test=())


def _run_parallel(jobs: Sequence[Any], *, num_jobs: int, label: str, cluster: Any) -> Iterator[Any]:
    """The results of joblib's `jobs` as they come; `num_jobs` -1 uses every core."""
    if cluster is not None:
        yield from progress(results_of(cluster, jobs), total=len(jobs), label=label)
        return
    available = cpu_count() if num_jobs < 0 else num_jobs
    pool = Parallel(n_jobs=max(1, min(available, len(jobs))), return_as="generator_unordered")
    try:
        yield from progress(pool(jobs), total=len(jobs), label=label)
    except TerminatedWorkerError as error:
        raise EnvironmentFault(
            f"A process was killed while it worked on a case, probably because memory ran out ({available} "
            f"at a time). Start again with --n_jobs {max(1, available // 2)}; finished cases are kept."
        ) from error
