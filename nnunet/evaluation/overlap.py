"""Voxel overlap of a predicted mask with its reference: counts, Dice, IoU per label, region and organ.

Every number of a case comes from one confusion matrix. Definitions follow nnU-Net: a structure that is empty
in both masks has no Dice (NaN, left out of means); one that is empty in only one of them has Dice 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from utils.contracts import OUTSIDE_LABEL, Score
from utils.errors import DatasetError

EmptyRule = Literal["nan", "one"]

VOXELS_PER_BLOCK = 2**20  # keeps the joint codes of a large CT in the processor's cache
MM3_PER_ML = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What is measured: one label value, or a region made of several."""

    name: str
    labels: tuple[int, ...]

    @property
    def key(self) -> str:
        """The name that nnU-Net's summary.json uses: the label value, or the region's tuple as text."""
        return str(self.labels[0]) if len(self.labels) == 1 else str(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapRules:
    """Which structures are measured, and how a structure that is empty in both masks scores.

    `regions_class_order` is the label that each region writes into a mask; empty without regions.
    """

    structures: tuple[Structure, ...]
    whole_organ: Structure
    num_labels: int
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None
    empty: EmptyRule = "nan"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCounts:
    """Voxels of one structure in one case, each in exactly one of four fields."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def n_pred(self) -> int:
        """Voxels of the structure in the prediction."""
        return self.true_positives + self.false_positives

    @property
    def n_ref(self) -> int:
        """Voxels of the structure in the reference."""
        return self.true_positives + self.false_negatives

    def dice(self, empty: EmptyRule = "nan") -> float:
        """2 TP / (2 TP + FP + FN); `empty` says what a structure absent from both masks scores."""
        return _ratio(2 * self.true_positives, self.n_pred + self.n_ref, empty)

    def iou(self, empty: EmptyRule = "nan") -> float:
        """TP / (TP + FP + FN); `empty` as for `dice`."""
        return _ratio(self.true_positives, self.n_pred + self.false_negatives, empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureOverlap:
    """Overlap of one structure in one case."""

    structure: Structure
    counts: OverlapCounts
    dice: float
    iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseOverlap:
    """Overlap of every structure in one case; `is_missing` marks a case that has no prediction."""

    case_id: str
    structures: tuple[StructureOverlap, ...]
    whole_organ: StructureOverlap
    voxel_ml: float = float("nan")
    reference_file: str = ""
    prediction_file: str = ""
    is_missing: bool = False

    @property
    def mean_dice(self) -> float:
        """Mean over the structures that have a Dice; NaN when none has."""
        values = np.array([item.dice for item in self.structures])
        return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")

    def to_scores(self) -> tuple[Score, ...]:
        """Dice, IoU and both volumes of every structure, as tidy rows."""
        rows = []
        for item in (*self.structures, self.whole_organ):
            values = (
                ("dice", item.dice, ""),
                ("iou", item.iou, ""),
                ("volume_reference", item.counts.n_ref * self.voxel_ml, "ml"),
                ("volume_predicted", item.counts.n_pred * self.voxel_ml, "ml"),
            )
            rows += [
                Score(case_id=self.case_id, target=item.structure.name, metric=metric, value=value, unit=unit)
                for metric, value, unit in values
            ]
        return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSource:
    """Where a case's masks came from and how large a voxel is; only copied into tables and summaries."""

    voxel_ml: float = float("nan")
    reference_file: str = ""
    prediction_file: str = ""


def overlap_rules(
    label_names: Sequence[str],
    *,
    regions: Sequence[tuple[int, ...]] = (),
    region_names: Sequence[str] = (),
    regions_class_order: Sequence[int] = (),
    ignore_label: int | None = None,
    empty: EmptyRule = "nan",
) -> OverlapRules:
    """Measure every label but the background, or every region where the dataset has regions.

    `label_names[i]` names label value i, `region_names[i]` region i, which is else called after its labels;
    the whole organ is the union of all labels above 0.
    """
    foreground = tuple(value for value in range(1, len(label_names)) if value != ignore_label)
    measured = tuple(tuple(region) for region in regions) or tuple((value,) for value in foreground)
    names = region_names or [" + ".join(label_names[value] for value in labels) for labels in measured]
    structures = tuple(
        Structure(name=name, labels=labels) for name, labels in zip(names, measured, strict=True)
    )
    return OverlapRules(
        structures=structures,
        whole_organ=Structure(name="whole organ", labels=foreground),
        num_labels=len(label_names),
        regions_class_order=tuple(regions_class_order),
        ignore_label=ignore_label,
        empty=empty,
    )


def label_confusion(
    truth: np.ndarray, predicted: np.ndarray, num_labels: int, *, ignore_label: int | None = None
) -> np.ndarray:
    """(num_labels, num_labels) int64 voxel counts, rows = reference, from two integer arrays of one shape.

    Reference voxels of the ignore label are left out; those outside the non-zero mask (-1) are background.
    Raises DatasetError when the shapes differ or a value lies outside the declared labels.
    """
    if truth.shape != predicted.shape:
        raise DatasetError(f"The reference has shape {truth.shape} but the prediction has {predicted.shape}.")
    flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
    counts = np.zeros(num_labels * num_labels, dtype=np.int64)
    for start in range(0, flat_truth.size, VOXELS_PER_BLOCK):
        block = slice(start, start + VOXELS_PER_BLOCK)
        counts += _count_pairs(flat_truth[block], flat_predicted[block], num_labels, ignore_label)
    return counts.reshape(num_labels, num_labels)


def structure_counts(confusion: np.ndarray, labels: Sequence[int]) -> OverlapCounts:
    """Counts of the union of `labels`, from the confusion matrix of all labels (rows = reference)."""
    members = list(labels)
    overlap = int(confusion[np.ix_(members, members)].sum())
    n_ref, n_pred = int(confusion[members].sum()), int(confusion[:, members].sum())
    return OverlapCounts(
        true_positives=overlap,
        false_positives=n_pred - overlap,
        false_negatives=n_ref - overlap,
        true_negatives=int(confusion.sum()) - n_ref - n_pred + overlap,
    )


def evaluate_case(
    case_id: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    rules: OverlapRules,
    *,
    source: CaseSource | None = None,
) -> CaseOverlap:
    """Overlap of one case from two integer (D, H, W) masks on the same grid; errors name the case."""
    try:
        confusion = label_confusion(truth, predicted, rules.num_labels, ignore_label=rules.ignore_label)
    except DatasetError as error:
        raise DatasetError(f"Case {case_id}: {error}") from error
    source = source or CaseSource()
    return CaseOverlap(
        case_id=case_id,
        structures=tuple(_measure(confusion, item, rules.empty) for item in rules.structures),
        whole_organ=_measure(confusion, rules.whole_organ, rules.empty),
        voxel_ml=source.voxel_ml,
        reference_file=source.reference_file,
        prediction_file=source.prediction_file,
    )


def failed_case(
    case_id: str, truth: np.ndarray, rules: OverlapRules, *, source: CaseSource | None = None
) -> CaseOverlap:
    """A case without a prediction: everything is missed and every structure scores 0, even an empty one."""
    empty = evaluate_case(case_id, truth, np.zeros_like(truth), rules, source=source)
    return replace(
        empty,
        structures=tuple(replace(item, dice=0.0, iou=0.0) for item in empty.structures),
        whole_organ=replace(empty.whole_organ, dice=0.0, iou=0.0),
        is_missing=True,
    )


def dice_per_label(
    truth: np.ndarray, predicted: np.ndarray, num_labels: int, *, ignore_label: int | None = None
) -> np.ndarray:
    """(num_labels,) float64 hard Dice; entry i belongs to label value i, so entry 0 is the background.

    NaN where a label is empty in both masks: average cases with `numpy.nanmean`.
    """
    confusion = label_confusion(truth, predicted, num_labels, ignore_label=ignore_label)
    sizes = (confusion.sum(axis=0) + confusion.sum(axis=1)).astype(np.float64)
    sizes[sizes == 0] = np.nan
    return 2 * np.diagonal(confusion) / sizes


def _count_pairs(
    truth: np.ndarray, predicted: np.ndarray, num_labels: int, ignore_label: int | None
) -> np.ndarray:
    """Occurrences of each (reference, prediction) pair in two flat arrays, as one vector of codes."""
    if ignore_label is not None:
        kept = truth != ignore_label
        truth, predicted = truth[kept], predicted[kept]
    if truth.size == 0:
        return np.zeros(num_labels * num_labels, dtype=np.int64)
    _refuse_values_outside("reference", truth, OUTSIDE_LABEL, num_labels)
    _refuse_values_outside("prediction", predicted, 0, num_labels)
    codes = np.maximum(truth, 0).astype(np.intp) * num_labels
    codes += predicted.astype(np.intp, copy=False)
    return np.bincount(codes, minlength=num_labels * num_labels)


def _refuse_values_outside(role: str, values: np.ndarray, lowest: int, num_labels: int) -> None:
    if values.dtype.kind not in "iub":
        raise DatasetError(f"The {role} holds {values.dtype} values; a mask needs whole numbers.")
    low, high = int(values.min()), int(values.max())
    if low < lowest or high >= num_labels:
        wrong = low if low < lowest else high
        raise DatasetError(
            f"The {role} holds the label value {wrong}, but only 0 to {num_labels - 1} are declared. "
            "Check that both masks and dataset.json belong to the same task."
        )


def _measure(confusion: np.ndarray, structure: Structure, empty: EmptyRule) -> StructureOverlap:
    counts = structure_counts(confusion, structure.labels)
    return StructureOverlap(
        structure=structure, counts=counts, dice=counts.dice(empty), iou=counts.iou(empty)
    )


def _ratio(part: int, whole: int, empty: EmptyRule) -> float:
    if whole == 0:
        return 1.0 if empty == "one" else float("nan")
    return part / whole
