"""What is compared: the held-out answers of a cross-validation, or of two together, and what they score."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.postprocessing import Postprocessing, mean_dice
from scripts.crossval_folds import finished_folds, refuse_other_options
from scripts.crossval_folds import (
    refuse_other_cases as refuse_other_split,
)
from scripts.crossval_scores import Pool, fold_networks, gather, write_postprocessing
from scripts.fold_data import read_fold
from scripts.members import METRICS_FILE, fold_folder
from scripts.model_postprocessing import FILE
from scripts.prepared_prediction import score_classes, score_masks
from scripts.run_options import RunOptions
from scripts.training_command import LOG, logged_training, training_command
from utils.errors import DatasetError
from utils.prepared_folder import SPLITS
from utils.run_log import progress
from utils.storage import read_record

Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One or two cross-validations as one answer to every held-out case; `folder` is where its files go."""

    name: str
    results: tuple[Path, ...]
    options: RunOptions  # of the (first) training, without a fold
    pool: Pool
    folder: Path
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The mean Dice over structures and cases, and macro-F1 where classes are known and predicted."""

    candidate: Candidate
    dice: float
    macro_f1: float | None
    num_cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPostprocessing:
    """The file, and what of it the choice is told with."""

    file: Path
    record: dict[str, Any]


def read_candidate(results: Path, data: Path | None, folds: Sequence[int], device: Device) -> Candidate:
    """A cross-validation by its results folder.

    DatasetError that names the file and the command, where a fold was not trained to its end.
    """
    options = _options(results, data, device)
    all_folds = read_fold(replace(options, fold=0)).folds
    wanted = tuple(sorted(set(folds))) or tuple(range(len(all_folds)))
    finished = finished_folds(results, len(all_folds))
    if missing := [fold for fold in wanted if fold not in finished]:
        raise DatasetError(
            f"{fold_folder(results, missing[0]) / METRICS_FILE} is missing: fold {missing[0]} was not "
            f"trained to its end. Run: {training_command(options, missing)}"
        )
    for fold in wanted:
        refuse_other_options(options, fold_folder(results, fold))
        refuse_other_split(all_folds, fold, fold_folder(results, fold))
    pool = gather(options, wanted)
    return Candidate(
        name=str(results),
        results=(results,),
        options=options,
        pool=pool,
        folder=results,
        networks=fold_networks(results, wanted),
    )


def refuse_other_cases(candidates: Sequence[Candidate]) -> None:
    """DatasetError where the candidates are not about the same held-out cases of the same labels."""
    first = candidates[0]
    known = {pooled.case.case_id for pooled in first.pool.cases}
    for other in candidates[1:]:
        if other.pool.plan.target_names != first.pool.plan.target_names:
            raise DatasetError(
                f"{other.name} segments {', '.join(other.pool.plan.target_names)}, {first.name} "
                f"{', '.join(first.pool.plan.target_names)}. Compare trainings on one dataset."
            )
        if different := sorted(known ^ {pooled.case.case_id for pooled in other.pool.cases}):
            raise DatasetError(
                f"{first.name} and {other.name} do not hold out the same cases: {different[0]} is only in "
                f"one of them ({len(different)} such cases). Train both on the same {SPLITS}, and all folds."
            )
        _refuse_other_scans(first, other)


def _refuse_other_scans(first: Candidate, other: Candidate) -> None:
    """DatasetError where a case has another grid: its two answers could not be compared voxel by voxel."""
    for one, two in zip(first.pool.cases, other.pool.cases, strict=True):  # both sorted by name
        shapes = one.case.footprint.native_shape, two.case.footprint.native_shape
        if shapes[0] != shapes[1]:
            raise DatasetError(
                f"Case {one.case.case_id} has a scan of {shapes[0]} voxels in {first.name} and of "
                f"{shapes[1]} in {other.name}. Prepare both from the same scans."
            )


def score_candidate(candidate: Candidate) -> Scored:
    """Score the masks on disk; DatasetError where no case has a reference."""
    pool = candidate.pool
    pooled_of = {pooled.case.case_id: pooled for pooled in pool.cases}
    overlaps = []
    for masks in progress(pool.masks(), total=len(pool.cases), label="Score"):
        pooled = pooled_of[masks.case_id]
        overlaps.append(score_masks(pooled.case, masks, pool.plan, pooled.mask))
    if not overlaps or math.isnan(mean_dice(overlaps)):
        raise DatasetError(f"{candidate.name}: no held-out case has a mask, so there is no Dice to compare.")
    cases = [pooled.case for pooled in pool.cases]
    classes = score_classes(
        cases,
        [pooled.class_probs for pooled in pool.cases],
        pool.plan,
        Resampling(seed=candidate.options.seed, groups=tuple(case.patient_id for case in cases)),
    )
    return Scored(
        candidate=candidate,
        dice=mean_dice(overlaps),
        macro_f1=None if classes is None else classes.macro_f1,
        num_cases=len(overlaps),
    )


def postprocess_best(candidate: Candidate, output: Path) -> FoundPostprocessing:
    """The candidate's postprocessing: the one that it has for these weights, else it is found now.

    That of some folds of a cross-validation is written into `output`: the one in its results is of all.
    """
    path = candidate.folder / FILE
    found = read_record(Postprocessing, path) if path.is_file() else None
    if found is None or set(found.networks) != set(candidate.networks):
        is_whole = len(candidate.pool.folds) == candidate.pool.num_folds
        path = path if is_whole else output / FILE
        found = write_postprocessing(path, candidate.pool, candidate.networks)
    return FoundPostprocessing(file=path, record={"file": path, "dice_after": found.dice_after})


def _options(results: Path, data: Path | None, device: Device) -> RunOptions:
    """The options that the folds of a results folder were trained with."""
    if (logged := logged_training(results)) is not None:
        return replace(logged, data=logged.data if data is None else data, device=device)
    raise DatasetError(
        f"{fold_folder(results, 0) / LOG} is missing: {results} is no cross-validation. Run: python "
        f"scripts/crossval.py --data DATA --task TASK --results {shlex.quote(str(results))}"
    )
