"""Preprocessed folder + case ids -> the checked list of cases that a loader may read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.contracts import Plan, PreprocessedCase, Shape
from utils.errors import DatasetError
from utils.storage import read_array

READABLE_IMAGE_TYPES = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForegroundTable:
    """Where the foreground of a case lies: `labels[i]` owns the rows `starts[i]:stops[i]` of `positions`."""

    labels: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    positions: np.ndarray  # (N, 3) int32, d h w


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One case as the loader sees it."""

    case: PreprocessedCase
    shape: Shape
    image_type: str  # float16 or float32, the same for every case of a folder
    foreground: ForegroundTable
    prior: Path | None = None  # label map of the previous stage, where the plan has one


def read_foreground(path: Path, shape: Shape) -> ForegroundTable:
    """The foreground table of a case: int32 rows (label, d, h, w) behind a row (0, *shape).

    DatasetError if it is no such table, or was made for a volume of another shape.
    """
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype != np.int32 or len(rows) < 1:
        raise DatasetError(
            f"{path} should hold int32 rows of 4, got {rows.dtype} {rows.shape}. Run preprocess.py again."
        )
    listed = tuple(rows[0, 1:].tolist())
    if listed != shape:
        raise DatasetError(
            f"{path} lists the foreground of a volume of {listed}, the image has {shape}. "
            "Run preprocess.py again for this folder."
        )
    rows = rows[1:][np.argsort(rows[1:, 0], kind="stable")]
    labels, starts = np.unique(rows[:, 0], return_index=True)
    stops = [*starts[1:].tolist(), len(rows)] if len(labels) else []
    return ForegroundTable(
        labels=tuple(labels.tolist()),
        starts=tuple(starts.tolist()),
        stops=tuple(stops),
        positions=np.ascontiguousarray(rows[:, 1:]),
    )


def build_catalogue(cases: Sequence[PreprocessedCase], plan: Plan) -> tuple[Entry, ...]:
    """The entries of `cases`, each file's header compared with the plan.

    Every case is checked before the first error is raised; DatasetError lists them all, with the remedy.
    """
    if not cases:
        raise DatasetError("This split has no cases. Choose another --fold, or check splits_final.json.")
    entries, faults = [], []
    for case in cases:
        try:
            entries.append(_check_entry(case, plan))
        except DatasetError as fault:
            faults.append(str(fault))
    if faults:
        raise DatasetError("\n".join(faults))
    if len({entry.image_type for entry in entries}) > 1:
        raise DatasetError(
            f"{entries[0].case.image.parent} mixes float16 and float32 images. "
            "Run preprocess.py again with one --dtype."
        )
    return tuple(entries)


def _check_entry(case: PreprocessedCase, plan: Plan) -> Entry:
    image = read_array(case.image, mapped=True)
    channels = plan.num_channels
    if image.ndim != 4 or image.shape[0] != channels or image.dtype not in READABLE_IMAGE_TYPES:
        raise DatasetError(
            f"{case.image} holds {image.dtype} {image.shape}; the plan needs float16 or float32 with "
            f"{channels} channels. Run preprocess.py again for this folder."
        )
    if case.label is None or case.foreground is None:
        raise DatasetError(
            f"Case {case.case_id} has no mask; training needs one for every case, prepared with "
            "preprocess.py --exec_mode training."
        )
    label = read_array(case.label, mapped=True)
    if label.shape != (1, *image.shape[1:]) or label.dtype != np.int16:
        raise DatasetError(
            f"{case.label} holds {label.dtype} {label.shape} beside an image of {image.shape}; "
            "they do not belong together. Run preprocess.py again for this folder."
        )
    depth, height, width = image.shape[1:]
    shape = (depth, height, width)
    return Entry(
        case=case,
        shape=shape,
        image_type=image.dtype.name,
        foreground=read_foreground(case.foreground, shape),
    )
