"""What memory the largest cases need, and whether that is there: told before the first of them is read."""

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

USED_SHARE = 0.5  # of the free memory; above it fewer cases at a time are advised
GIGABYTE, MEGABYTE = 1e9, 1e6


def free_bytes() -> int | None:
    """Memory that is free now, at most what the container may hold; None where the system does not tell."""
    memory = read_memory()
    known = [value for value in (memory.available_bytes, memory.container_limit_bytes) if value is not None]
    return min(known, default=None)


def check_reading(cases: Sequence[RawCase], *, num_jobs: int) -> None:
    """One line with what reading needs; DatasetError for cases that the free memory cannot hold."""
    _check("read", [reading_need(size) for size in _sizes(cases)], num_jobs)


def check_preparing(
    cases: Sequence[RawCase], plan: Plan, fingerprint: Fingerprint | None, *, num_jobs: int
) -> None:
    """The same for reading, cropping, normalising and resampling; the fingerprint tells what is cropped."""
    crops: Mapping[str, Shape] = {}
    if fingerprint is not None and plan.preset != NVIDIA:  # which crops to other voxels
        crops = dict(zip(fingerprint.case_ids, fingerprint.shapes, strict=True))
    sizes = [with_crop(size, crops.get(size.case_id)) for size in _sizes(cases)]
    _check("prepare", [preparing_need(size, plan) for size in sizes], num_jobs)


def too_large_scans(scans: Sequence[RawCase], plans: Sequence[Plan]) -> dict[str, str]:
    """By case id, why a scan cannot be predicted in the free memory; one line with what the others need."""
    needs, free = [predicting_need(size, plans) for size in _sizes(scans)], free_bytes()
    refused = {need.case_id: _refusal(need, free) for need in needs if free is not None and need.least > free}
    _tell("predict", [need for need in needs if need.case_id not in refused], free, num_jobs=1)
    return refused


def _sizes(cases: Sequence[RawCase]) -> list[CaseSize]:
    return [size for case in cases if (size := case_size(case)) is not None]


def _check(verb: str, needs: Sequence[Need], num_jobs: int) -> None:
    free = free_bytes()
    if free is not None and (refused := [_refusal(need, free) for need in needs if need.least > free]):
        raise DatasetError("\n".join([*refused, "Nothing was prepared."]))
    _tell(verb, needs, free, num_jobs=len(usable_cpus()) if num_jobs < 0 else num_jobs)


def _tell(verb: str, needs: Sequence[Need], free: int | None, *, num_jobs: int) -> None:
    """One line: the largest case, as many of the largest as are worked on at a time, what is free."""
    largest = sorted(needs, key=lambda need: need.most, reverse=True)[:num_jobs]
    if not largest:
        return
    first, count = largest[0], len(largest)
    together = sum(need.most for need in largest)
    others = f", {count} at a time up to {_text(together)}" if count > 1 else ""
    told = "" if free is None else f"; {_text(free)} are free"
    if free is not None and together > USED_SHARE * free:
        fitting = max(1, int(free * USED_SHARE // first.most))
        told += f". --n_jobs {fitting} needs less" if fitting < count else ""
    say(
        f"Memory to {verb} the largest case, {first.case_id} ({_grid(first)} voxels): up to "
        f"{_text(first.most)}{others}{told}."
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
    if num_bytes < GIGABYTE / 100:
        return f"{num_bytes / MEGABYTE:.1f} MB"
    return f"{num_bytes / GIGABYTE:.2f} GB"
