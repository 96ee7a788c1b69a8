"""Whether the memory suffices for the largest cases, told before the first of them is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_preprocessing.case_memory import (
    CaseSize,
    Need,
    case_size,
    predicting_need,
    preparing_need,
    reading_need,
    with_crop,
)
from data_preprocessing.prepare import NVIDIA
from utils.contracts import Fingerprint, Plan, RawCase, Shape
from utils.errors import DatasetError
from utils.machine import read_memory, usable_cpus
from utils.run_log import say

TOLD_SHARE = 0.5  # of the free memory; what needs less is not worth a line
GIGABYTE = 1e9


def free_bytes() -> int | None:
    """Memory that is free now, at most what the container may hold; None where the system does not tell."""
    memory = read_memory()
    known = [value for value in (memory.available_bytes, memory.container_limit_bytes) if value is not None]
    return min(known, default=None)


def check_reading(cases: Sequence[RawCase], *, num_jobs: int) -> None:
    """DatasetError for cases that cannot be read in the free memory; a line where it may become short."""
    _check([reading_need(size) for size in _sizes(cases)], num_jobs)


def check_preparing(
    cases: Sequence[RawCase], plan: Plan, fingerprint: Fingerprint | None, *, num_jobs: int
) -> None:
    """The same for reading, cropping, normalising and resampling; the fingerprint tells what is cropped."""
    crops: Mapping[str, Shape] = {}
    if fingerprint is not None and plan.preset != NVIDIA:  # which crops to other voxels
        crops = dict(zip(fingerprint.case_ids, fingerprint.shapes, strict=True))
    sizes = [with_crop(size, crops.get(size.case_id)) for size in _sizes(cases)]
    _check([preparing_need(size, plan) for size in sizes], num_jobs)


def too_large_scans(scans: Sequence[RawCase], plans: Sequence[Plan]) -> dict[str, str]:
    """By case id, why a scan cannot be predicted in the free memory; a line where it may become short."""
    needs, free = [predicting_need(size, plans) for size in _sizes(scans)], free_bytes()
    if free is None or not needs:
        return {}
    refused = {need.case_id: _refusal(need, free) for need in needs if need.least > free}
    _tell([need for need in needs if need.case_id not in refused], free, num_jobs=1)
    return refused


def _sizes(cases: Sequence[RawCase]) -> list[CaseSize]:
    return [size for case in cases if (size := case_size(case)) is not None]


def _check(needs: Sequence[Need], num_jobs: int) -> None:
    free = free_bytes()
    if free is None or not needs:
        return
    if refused := [_refusal(need, free) for need in needs if need.least > free]:
        raise DatasetError("\n".join([*refused, "Nothing was prepared."]))
    _tell(needs, free, num_jobs=len(usable_cpus()) if num_jobs < 0 else num_jobs)


def _tell(needs: Sequence[Need], free: int, *, num_jobs: int) -> None:
    """One line where the largest cases, as many as are worked on at a time, need much of what is free."""
    largest = sorted(needs, key=lambda need: need.most, reverse=True)[:num_jobs]
    together = sum(need.most for need in largest)
    if together <= TOLD_SHARE * free:
        return
    first, count = largest[0], len(largest)
    fitting = max(1, int(free * TOLD_SHARE // first.most))
    advice = f" --n_jobs {fitting} needs less." if fitting < count else ""
    others = f", {count} at a time up to {_text(together)}" if count > 1 else ""
    say(
        f"Memory: case {first.case_id} ({_grid(first)} voxels) needs up to {_text(first.most)}{others}; "
        f"{_text(free)} are free.{advice}"
    )


def _refusal(need: Need, free: int) -> str:
    return (
        f"Case {need.case_id}: its {_grid(need)} voxels need {_text(need.least)} of memory at once, and "
        f"{_text(free)} are free. Crop or downsample it, end other programs, or use a machine with more "
        "memory."
    )


def _grid(need: Need) -> str:
    return " x ".join(map(str, need.shape))


def _text(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.2f} GB"
