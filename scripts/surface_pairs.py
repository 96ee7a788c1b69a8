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
from nnunet.evaluation.overlap import CaseOverlap, OverlapRules, Structure, StructureOverlap
from nnunet.evaluation.report import number_text
from nnunet.evaluation.surface import SurfaceScore, surface_score
from utils.contracts import Spacing
from utils.errors import DatasetError
from utils.storage import atomic_file

USUAL_TOLERANCE_MM = 1.0  # of the challenge's reference systems
FAILURE = SurfaceScore(surface_dice=0.0, hd95_mm=np.inf, mean_distance_mm=np.inf)  # of a missing prediction
COLUMNS = ("case", "label", "surface_dice", "hd95_mm", "mean_distance_mm", "volume_difference_ml")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceRow:
    """One structure of one case; the volume difference is predicted minus reference."""

    case_id: str
    label: str
    score: SurfaceScore
    volume_difference_ml: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskPairOnGrid:
    """Two masks (X, Y, Z) of label values on one grid; voxels of the ignore label count for neither."""

    truth: np.ndarray
    predicted: np.ndarray
    spacing_mm: Spacing
    ignore_label: int | None = None

    def score(self, structure: Structure, tolerance_mm: float) -> SurfaceScore:
        """The surfaces of the union of the structure's labels."""
        truth, predicted = (np.isin(mask, structure.labels) for mask in (self.truth, self.predicted))
        if self.ignore_label is not None:
            is_counted = self.truth != self.ignore_label
            truth, predicted = truth & is_counted, predicted & is_counted
        return surface_score(truth, predicted, self.spacing_mm, tolerance_mm=tolerance_mm)


def surface_dice_by_label(
    case: CaseOverlap, masks: MaskPairOnGrid, *, tolerance_mm: float = USUAL_TOLERANCE_MM
) -> dict[str, float]:
    """The normalised surface Dice of every structure of a case, by its name."""
    return {
        item.structure.name: masks.score(item.structure, tolerance_mm).surface_dice
        for item in (*case.structures, case.whole_organ)
    }


def mean_by_label(cases: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over cases of each label's number; empty without cases."""
    return {name: float(np.mean([case[name] for case in cases])) for name in (cases[0] if cases else ())}


def measure_surfaces(
    cases: Sequence[CaseOverlap], rules: OverlapRules, tolerance_mm: float, num_jobs: int
) -> tuple[SurfaceRow, ...]:
    """The surfaces of every structure, from the NIfTI files of cases that `measure_pairs` has checked.

    Those of a case without a prediction count as failed, even where a structure is empty, as its Dice does.
    """
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
    if case.is_missing:
        return [_row(case, item, FAILURE) for item in (*case.structures, case.whole_organ)]
    reference = read_label_volume(Path(case.reference_file))
    truth = reference.voxels.reshape(reference.voxels.shape[:3])
    predicted = read_label_volume(Path(case.prediction_file)).voxels.reshape(truth.shape)
    masks = MaskPairOnGrid(
        truth=truth, predicted=predicted, spacing_mm=reference.spacing_mm, ignore_label=rules.ignore_label
    )
    return [
        _row(case, item, masks.score(item.structure, tolerance_mm))
        for item in (*case.structures, case.whole_organ)
    ]


def _row(case: CaseOverlap, item: StructureOverlap, score: SurfaceScore) -> SurfaceRow:
    return SurfaceRow(
        case_id=case.case_id,
        label=item.structure.name,
        score=score,
        volume_difference_ml=(item.counts.n_pred - item.counts.n_ref) * case.voxel_ml,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
