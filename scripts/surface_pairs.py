"""Surfaces of predicted masks beside their references, in millimetres; as a file and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_preprocessing.volume_io import read_label_volume
from nnunet.evaluation.overlap import CaseOverlap, OverlapRules
from nnunet.evaluation.report import number_text
from nnunet.evaluation.surface import SurfaceScore, surface_score
from utils.errors import DatasetError
from utils.storage import atomic_file

COLUMNS = ("case", "label", "surface_dice", "hd95_mm", "mean_distance_mm", "volume_difference_ml")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceRow:
    """One structure of one case; the volume difference is predicted minus reference."""

    case_id: str
    label: str
    score: SurfaceScore
    volume_difference_ml: float


def measure_surfaces(
    cases: Sequence[CaseOverlap], rules: OverlapRules, tolerance_mm: float, num_jobs: int
) -> tuple[SurfaceRow, ...]:
    """The surfaces of every structure, from the NIfTI files of cases that `measure_pairs` has checked."""
    if npy := [case.case_id for case in cases if case.prediction_file.endswith(".npy")]:
        raise DatasetError(f"Surfaces need NIfTI predictions, but that of {npy[0]} is a .npy file.")
    measure = joblib.delayed(_measure)
    rows = joblib.Parallel(n_jobs=num_jobs)(measure(case, rules, tolerance_mm) for case in cases)
    return tuple(row for of_case in rows for row in of_case or ())


def write_surface_table(path: Path, rows: Sequence[SurfaceRow]) -> None:
    """One row per case and structure; an undefined number is an empty cell, inf where one mask is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        score = row.score
        numbers = (score.surface_dice, score.hd95_mm, score.mean_distance_mm, row.volume_difference_ml)
        writer.writerow(
            [row.case_id, row.label, *("" if np.isnan(number) else f"{number:.6g}" for number in numbers)]
        )
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())


def print_surfaces(rows: Sequence[SurfaceRow], tolerance_mm: float) -> None:
    """Means per label on standard output; a case without a finite distance is counted, not averaged."""
    table = Table("label", title=f"Surfaces, tolerance {tolerance_mm:g} mm")
    for column in ("cases", "surface Dice", "HD95 mm", "mean distance mm", "no distance", "|volume| ml"):
        table.add_column(column, justify="right")
    for label in dict.fromkeys(row.label for row in rows):
        of_label = [row for row in rows if row.label == label]
        finite = [row.score for row in of_label if np.isfinite(row.score.hd95_mm)]
        table.add_row(
            escape(label),
            str(len(of_label)),
            number_text(_mean([row.score.surface_dice for row in of_label])),
            number_text(_mean([score.hd95_mm for score in finite]), digits=2),
            number_text(_mean([score.mean_distance_mm for score in finite]), digits=2),
            str(len(of_label) - len(finite)),
            number_text(_mean([abs(row.volume_difference_ml) for row in of_label]), digits=2),
        )
    Console().print(table)


def _measure(case: CaseOverlap, rules: OverlapRules, tolerance_mm: float) -> list[SurfaceRow]:
    reference = read_label_volume(Path(case.reference_file))
    truth = reference.voxels.reshape(reference.voxels.shape[:3])
    predicted = read_label_volume(Path(case.prediction_file)).voxels.reshape(truth.shape)
    is_counted = np.ones(truth.shape, bool) if rules.ignore_label is None else truth != rules.ignore_label
    return [
        SurfaceRow(
            case_id=case.case_id,
            label=item.structure.name,
            score=surface_score(
                np.isin(truth, item.structure.labels) & is_counted,
                np.isin(predicted, item.structure.labels) & is_counted,
                reference.spacing_mm,
                tolerance_mm=tolerance_mm,
            ),
            volume_difference_ml=(item.counts.n_pred - item.counts.n_ref) * case.voxel_ml,
        )
        for item in (*case.structures, case.whole_organ)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
