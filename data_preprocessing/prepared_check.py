"""Whether the files of prepared cases are still whole: headers and sizes are read, no voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preprocessing.prepare import NVIDIA
from utils.contracts import Plan, PreprocessedCase, RawCase
from utils.errors import DatasetError
from utils.prepared_folder import (
    FOREGROUND,
    IMAGE,
    LABEL,
    META,
    ORIGINAL_LABEL,
    case_file,
    read_prepared_case,
)
from utils.storage import read_array

META_SHAPE = (4, 3)
TABLE_WIDTH = 4  # columns of the foreground table


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedArray:
    """What a file should hold; None stands for any length."""

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, array: np.ndarray) -> bool:
        """Whether `array` is of this type and shape."""
        return (
            array.dtype == self.dtype
            and len(array.shape) == len(self.shape)
            and all(wanted in (None, length) for wanted, length in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('any' if edge is None else str(edge) for edge in self.shape)})"


def damaged_cases(folder: Path, cases: Sequence[RawCase], plan: Plan, *, dtype: str) -> dict[str, str]:
    """By case id, what is wrong with the files of those of `cases` that `folder` holds by this plan.

    The images are of the type `dtype`. The record of every case exists, but it or an array may be damaged.
    """
    first = {case.case_id: next(_faults(folder, case, plan, dtype), "") for case in cases}
    return {case_id: fault for case_id, fault in first.items() if fault}


def _faults(folder: Path, case: RawCase, plan: Plan, dtype: str) -> Iterator[str]:
    try:
        record = read_prepared_case(folder, case.case_id)
    except DatasetError as error:
        yield str(error)
        return
    for suffix, expected in _expected(record, case, plan, dtype).items():
        path = case_file(folder, case.case_id, suffix)
        try:
            array = read_array(path, mapped=True)
        except DatasetError as error:
            yield str(error)
            continue
        if not expected.fits(array):
            yield f"{path} holds {array.dtype} {array.shape}, not {expected}."
        elif path.stat().st_size != array.offset + array.nbytes:  # type: ignore[attr-defined]
            yield f"{path} is longer than its header says."


def _expected(record: PreprocessedCase, case: RawCase, plan: Plan, dtype: str) -> dict[str, ExpectedArray]:
    """The files of a case, by suffix; a case has a label where it was prepared for training."""
    arrays = {IMAGE: ExpectedArray(dtype=dtype, shape=(plan.num_channels, *record.shape))}
    if record.label is not None:
        arrays[LABEL] = ExpectedArray(dtype="int16", shape=(1, *record.shape))
        arrays[FOREGROUND] = ExpectedArray(dtype="int32", shape=(None, TABLE_WIDTH))
    if case.label is not None:
        arrays[ORIGINAL_LABEL] = ExpectedArray(dtype="int16", shape=(1, *record.footprint.cropped_shape))
    if plan.preset == NVIDIA:
        arrays[META] = ExpectedArray(dtype="int32", shape=META_SHAPE)
    return arrays
