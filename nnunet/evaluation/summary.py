"""Overlap of all cases together: means with intervals, and nnU-Net's summary.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet.evaluation.bootstrap import Interval, Resampling, bootstrap_interval, mean_of
from nnunet.evaluation.overlap import CaseOverlap, EmptyRule, StructureOverlap
from utils.contracts import Score
from utils.storage import write_json

SUMMARY_FILE = "summary.json"
WHOLE_ORGAN_FILE = "whole_organ_summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureSummary:
    """One structure over all cases; `num_cases` counts those that have a Dice."""

    name: str
    num_cases: int
    mean_dice: float
    median_dice: float
    min_dice: float
    mean_iou: float
    dice_interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationSummary:
    """Overlap over the whole set; `foreground_mean_dice` is the plain mean of the structures' means."""

    cases: tuple[CaseOverlap, ...]
    structures: tuple[StructureSummary, ...]
    whole_organ: StructureSummary
    foreground_mean_dice: float
    foreground_mean_iou: float
    foreground_interval: Interval
    empty: EmptyRule = "nan"

    def to_scores(self) -> tuple[Score, ...]:
        """Rows of the whole set first, then those of every case."""
        rows = [
            Score(case_id=None, target="foreground", metric="dice", value=self.foreground_mean_dice),
            Score(case_id=None, target="foreground", metric="iou", value=self.foreground_mean_iou),
        ]
        for item in (*self.structures, self.whole_organ):
            values = (
                ("dice", item.mean_dice),
                ("dice_median", item.median_dice),
                ("dice_low", item.dice_interval.low),
                ("dice_high", item.dice_interval.high),
                ("iou", item.mean_iou),
            )
            rows += [
                Score(case_id=None, target=item.name, metric=metric, value=value) for metric, value in values
            ]
        return (*rows, *(row for case in self.cases for row in case.to_scores()))


def summarise_segmentation(
    cases: Sequence[CaseOverlap], *, empty: EmptyRule = "nan", resampling: Resampling | None = None
) -> SegmentationSummary:
    """Mean, median and interval of every structure over cases that were measured with the same rules.

    `empty` only records the rule that `evaluate_case` followed. As in nnU-Net, the foreground mean is NaN
    when a structure occurs in no reference and no prediction. Raises ValueError without cases.
    """
    if not cases:
        raise ValueError("A summary needs at least one case.")
    resampling = resampling or Resampling()
    count = len(cases[0].structures)
    columns = [tuple(case.structures[index] for case in cases) for index in range(count)]
    structures = tuple(_summarise(column, resampling) for column in columns)
    dice = np.array([[item.dice for item in column] for column in columns]).reshape(count, len(cases))
    return SegmentationSummary(
        cases=tuple(cases),
        structures=structures,
        whole_organ=_summarise([case.whole_organ for case in cases], resampling),
        foreground_mean_dice=_plain_mean([item.mean_dice for item in structures]),
        foreground_mean_iou=_plain_mean([item.mean_iou for item in structures]),
        foreground_interval=bootstrap_interval(_mean_of_means(dice), len(cases), resampling),
        empty=empty,
    )


def nnunet_summary(cases: Sequence[CaseOverlap]) -> dict[str, Any]:
    """The content of nnU-Net's summary.json for the measured structures; NaN where there is no number."""
    return _as_nnunet(cases, lambda case: case.structures)


def whole_organ_summary(cases: Sequence[CaseOverlap]) -> dict[str, Any]:
    """As `nnunet_summary`, for the union of all labels only."""
    return _as_nnunet(cases, lambda case: (case.whole_organ,))


def write_summaries(folder: Path, cases: Sequence[CaseOverlap]) -> None:
    """Write summary.json and whole_organ_summary.json; NaN becomes null, as strict JSON demands."""
    write_json(folder / SUMMARY_FILE, nnunet_summary(cases))
    write_json(folder / WHOLE_ORGAN_FILE, whole_organ_summary(cases))


def ranked_cases(cases: Sequence[CaseOverlap]) -> tuple[CaseOverlap, ...]:
    """Cases that have a Dice, best mean first; ties keep the order of their names."""
    scored = [case for case in cases if not np.isnan(case.mean_dice)]
    return tuple(sorted(scored, key=lambda case: (-case.mean_dice, case.case_id)))


def _summarise(column: Sequence[StructureOverlap], resampling: Resampling) -> StructureSummary:
    dice = np.array([item.dice for item in column])
    iou = np.array([item.iou for item in column])
    defined = dice[~np.isnan(dice)]
    has_any = defined.size > 0
    return StructureSummary(
        name=column[0].structure.name,
        num_cases=int(defined.size),
        mean_dice=_mean_of_defined(dice),
        median_dice=float(np.median(defined)) if has_any else float("nan"),
        min_dice=float(defined.min()) if has_any else float("nan"),
        mean_iou=_mean_of_defined(iou),
        dice_interval=bootstrap_interval(mean_of(dice), len(column), resampling),
    )


def _mean_of_means(dice: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic behind the foreground mean: (S, N) Dice to the plain mean of S means over cases."""
    statistics = [mean_of(row) for row in dice]

    def foreground_mean(weights: np.ndarray) -> np.ndarray:
        if not statistics:
            return np.full(len(weights), np.nan)
        return np.mean([statistic(weights) for statistic in statistics], axis=0)

    return foreground_mean


def _as_nnunet(
    cases: Sequence[CaseOverlap], select: Callable[[CaseOverlap], Sequence[StructureOverlap]]
) -> dict[str, Any]:
    rows = [{item.structure.key: _metrics(item) for item in select(case)} for case in cases]
    keys = list(rows[0]) if rows else []
    metrics = list(rows[0][keys[0]]) if keys else []
    mean = {
        key: {name: _mean_of_defined(np.array([row[key][name] for row in rows])) for name in metrics}
        for key in keys
    }
    return {
        "foreground_mean": {name: _plain_mean([mean[key][name] for key in keys]) for name in metrics},
        "mean": mean,
        "metric_per_case": [
            {
                "metrics": row,
                "prediction_file": case.prediction_file,
                "reference_file": case.reference_file,
            }
            for case, row in zip(cases, rows, strict=True)
        ],
    }


def _metrics(item: StructureOverlap) -> dict[str, float]:
    counts = item.counts
    return {
        "Dice": item.dice,
        "IoU": item.iou,
        "TP": counts.true_positives,
        "FP": counts.false_positives,
        "FN": counts.false_negatives,
        "TN": counts.true_negatives,
        "n_pred": counts.n_pred,
        "n_ref": counts.n_ref,
    }


def _mean_of_defined(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN (without a warning) when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _plain_mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
