"""Preprocessed folder + case ids -> the checked list of cases that a loader may read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_loading.headers import ArrayHeader, read_header
from utils.contracts import NO_CLASS, Plan, PreprocessedCase, Shape
from utils.errors import DatasetError
from utils.prepared_folder import FOREGROUND, IMAGE, LABEL, PRIOR, case_file, record_file
from utils.storage import read_array

Checked = TypeVar("Checked")

READABLE_IMAGE_TYPES = (np.dtype(np.float16), np.dtype(np.float32))
SHOWN = 30  # faults told one by one
PLAN_REMEDY = "The plan and this folder do not belong together: run preprocess.py again for it."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForegroundTable:
    """Where the foreground of a case lies: `labels[i]` owns the rows `starts[i]:stops[i]` of `positions`."""

    labels: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    positions: np.ndarray  # (N, 3) int32, d h w


NO_FOREGROUND = ForegroundTable(labels=(), starts=(), stops=(), positions=np.zeros((0, 3), np.int32))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One case as the loader sees it."""

    case: PreprocessedCase  # its `label` is None where no mask was drawn, whatever file lies there
    shape: Shape
    image_type: str  # float16 or float32, the same for every case of a folder
    foreground: ForegroundTable
    prior: Path | None = None  # int16 (1, D, H, W), the previous stage's labels, where the plan has one


def read_foreground(path: Path, shape: Shape) -> ForegroundTable:
    """The foreground table of a case: int32 rows (label, d, h, w) behind a row (0, *shape).

    DatasetError if it is no such table, or was made for a volume of another shape.
    """
    rows, anew = read_array(path), _anew(path.name.removesuffix(FOREGROUND))
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype != np.int32 or len(rows) < 1:
        raise DatasetError(f"{path} should hold int32 rows of 4, got {rows.dtype} {rows.shape}. {anew}")
    listed = tuple(rows[0, 1:].tolist())
    if listed != shape:
        raise DatasetError(
            f"{path} lists the foreground of a volume of {listed}, the image has {shape}. {anew}"
        )
    rows = rows[1:]
    if (rows[:, 1:] < 0).any() or (rows[:, 1:] >= shape).any():
        raise DatasetError(f"{path} lists voxels outside the volume of {shape}. {anew}")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    labels, starts = np.unique(rows[:, 0], return_index=True)
    stops = [*starts[1:].tolist(), len(rows)] if len(labels) else []
    return ForegroundTable(
        labels=tuple(labels.tolist()),
        starts=tuple(starts.tolist()),
        stops=tuple(stops),
        positions=np.ascontiguousarray(rows[:, 1:]),
    )


def build_catalogue(
    cases: Sequence[PreprocessedCase], plan: Plan, *, slices_only: bool = False
) -> tuple[Entry, ...]:
    """The entries of `cases`, each file's header compared with the plan; no voxel is read.

    A case without a mask has an empty foreground table and no label file; `slices_only` accepts only cases of
    one slice. Every case is checked before the first error is raised; DatasetError tells the faults of all,
    with the remedy.
    """
    if not cases:
        raise DatasetError("This split has no cases. Choose another --fold, or check splits_final.json.")
    faults: list[str] = []
    entries = [entry for case in cases if (entry := _check_case(case, plan, faults, slices_only=slices_only))]
    if faults:
        raise DatasetError(_told(faults))
    if plan.prior_labels:
        _refuse_other_priors(entries)
    if len({entry.image_type for entry in entries}) > 1:
        raise DatasetError(
            f"{entries[0].case.image.parent} mixes float16 and float32 images. "
            "Run preprocess.py again with one --dtype."
        )
    return tuple(entries)


def refuse_aimless(entries: Sequence[Entry]) -> None:
    """DatasetError if no training case has a mask or a class: there is nothing to learn."""
    if all(entry.case.label is None and entry.case.class_target == NO_CLASS for entry in entries):
        raise DatasetError(
            "No training case has a mask or a class. Add masks (labelsTr) or classes (classes.csv) to the "
            "raw dataset and run preprocess.py --exec_mode training again."
        )


def refuse_unpaired(folder: Path) -> None:
    """DatasetError if `folder` holds an image without the record of its case, or a mask without an image.

    Such cases would be left out without a word.
    """
    images, masks = (
        {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")} for suffix in (IMAGE, LABEL)
    )
    faults = [
        f"{case_file(folder, name, LABEL)} has no {name}{IMAGE} beside it." for name in sorted(masks - images)
    ] + [
        f"{case_file(folder, name, IMAGE)} has no {record_file(folder, name).name} beside it."
        for name in sorted(images)
        if not record_file(folder, name).is_file()
    ]
    if faults:
        raise DatasetError(f"{_told(faults)}\nRun preprocess.py again, or remove what does not belong there.")


def _told(faults: Sequence[str]) -> str:
    rest = len(faults) - SHOWN
    return "\n".join([*faults[:SHOWN], *([f"... and {rest} more."] if rest > 0 else [])])


def _check_case(case: PreprocessedCase, plan: Plan, faults: list[str], *, slices_only: bool) -> Entry | None:
    """The entry of a case; its faults, all of them, are added to `faults`, and then there is none."""
    found: list[str] = []
    image = _checked(found, lambda: _image_header(case, plan, slices_only=slices_only))
    shape = case.shape if image is None else _shape_of(image)
    if not (case.class_target == NO_CLASS or 0 <= case.class_target < plan.num_classes):
        found.append(
            f"Case {case.case_id} has class {case.class_target}, the plan has {plan.num_classes} classes "
            f"{list(plan.class_names)}. {PLAN_REMEDY}"
        )
    if case.label is not None:
        label = case.label
        _checked(found, lambda: _refuse_other_map(label, shape, case))
    table, has_mask = NO_FOREGROUND, case.foreground is not None
    if case.foreground is not None:
        if case.label is None:
            found.append(f"Case {case.case_id} has a foreground table but no mask. {_anew(case.case_id)}")
        path = case.foreground
        table = _checked(found, lambda: _foreground_of(path, shape, plan, case)) or NO_FOREGROUND
    prior = case_file(case.image.parent, case.case_id, PRIOR) if plan.prior_labels else None
    faults += found
    if found or image is None:
        return None
    # The mask file of a case without a mask holds nothing but one value: there is no need to open it.
    known = case if has_mask else replace(case, label=None)
    return Entry(case=known, shape=shape, image_type=image.dtype.name, foreground=table, prior=prior)


def _checked(found: list[str], check: Callable[[], Checked]) -> Checked | None:
    """What `check` returns; its DatasetError is added to `found` instead."""
    try:
        return check()
    except DatasetError as fault:
        found.append(str(fault))
        return None


def _anew(case_id: str) -> str:
    return f"Delete {case_id}.json beside it and run preprocess.py again: this prepares the case anew."


def _header_of(path: Path, case: PreprocessedCase) -> ArrayHeader:
    try:
        return read_header(path)
    except DatasetError as fault:
        raise DatasetError(f"{fault} {_anew(case.case_id)}") from fault


def _image_header(case: PreprocessedCase, plan: Plan, *, slices_only: bool) -> ArrayHeader:
    image = _header_of(case.image, case)
    channels = plan.num_channels
    if len(image.shape) != 4 or 0 in image.shape or image.dtype not in READABLE_IMAGE_TYPES:
        raise DatasetError(
            f"{case.image} holds {image}; the loader reads float16 or float32 of (channels, depth, height, "
            f"width). {_anew(case.case_id)}"
        )
    if image.shape[0] != channels:
        raise DatasetError(
            f"{case.image} holds {image}; the plan needs {channels} channels {list(plan.channel_names)}. "
            f"{PLAN_REMEDY}"
        )
    if _shape_of(image) != case.shape:
        raise DatasetError(
            f"{case.image} holds {image}, but {case.case_id}.json tells of {case.shape} voxels. "
            f"{_anew(case.case_id)}"
        )
    if slices_only and image.shape[1] != 1:
        raise DatasetError(
            f"Case {case.case_id}: {case.image} is {image.shape[1]} slices deep; --data2d_dim 2 takes images "
            "of one slice. Use --data2d_dim 3 to cut slices from volumes."
        )
    return image


def _shape_of(image: ArrayHeader) -> Shape:
    _, depth, height, width = image.shape
    return depth, height, width


def _refuse_other_map(path: Path, shape: Shape, case: PreprocessedCase) -> None:
    label = _header_of(path, case)
    if label.shape != (1, *shape) or label.dtype != np.int16:
        raise DatasetError(
            f"{path} holds {label} beside an image of {shape}; it should be int16 {(1, *shape)}. "
            f"{_anew(case.case_id)}"
        )


def _foreground_of(path: Path, shape: Shape, plan: Plan, case: PreprocessedCase) -> ForegroundTable:
    _header_of(path, case)
    table = read_foreground(path, shape)
    if unknown := [label for label in table.labels if not 0 <= label < plan.num_labels]:
        raise DatasetError(
            f"{path} lists the labels {unknown}, the plan has {plan.num_labels} labels "
            f"{list(plan.label_names)}. {PLAN_REMEDY}"
        )
    return table


def _refuse_other_priors(entries: Sequence[Entry]) -> None:
    """DatasetError that tells once what makes the previous stage's labels, where cases lack them.

    Their values, 0 to the plan's `prior_labels`, are the promise of whoever wrote the files.
    """
    faults: list[str] = []
    for entry in entries:
        _checked(faults, lambda entry=entry: _refuse_other_prior(entry))
    if not faults:
        return
    folder = entries[0].case.image.parent
    task = folder.name.partition("_3d")[0]
    raise DatasetError(
        f"{_told(faults)}\nThe plan needs the previous stage's labels of every case as int16 (1, D, H, W); "
        f"{len(faults)} of {len(entries)} cases have none. Run: python scripts/cascade.py --data "
        f"{folder.parent} --task {task} with the other options of this training: it trains the low "
        "resolution on all folds, predicts the labels of the cases out of fold, and goes on with this plan."
    )


def _refuse_other_prior(entry: Entry) -> None:
    if entry.prior is None:
        return
    prior = read_header(entry.prior)
    if prior.shape != (1, *entry.shape) or prior.dtype != np.int16:
        raise DatasetError(f"{entry.prior} holds {prior} beside an image of {entry.shape}.")
