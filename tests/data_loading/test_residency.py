"""Volumes in memory or on disk: the choice, and what it is told with."""

from dataclasses import replace

import numpy as np
import pytest

from data_loading.residency import choose_residency, free_bytes, volume_bytes
from utils.storage import write_array


@pytest.mark.parametrize(
    ("wish", "needed", "free", "place"),
    [
        ("auto", 50, 100, "memory"),
        ("auto", 51, 100, "disk"),
        ("auto", 0, 0, "memory"),
        ("memory", 999, 100, "memory"),
        ("disk", 1, 100, "disk"),
    ],
)
def test_volumes_stay_in_memory_if_half_of_what_is_free_holds_them(
    wish, needed: int, free: int, place: str
) -> None:
    choice = choose_residency(wish, volume_bytes=needed, free_bytes=free)
    assert choice.in_memory is (place == "memory")


def test_the_choice_is_told_in_one_sentence() -> None:
    kept = choose_residency("auto", volume_bytes=3_200_000_000, free_bytes=20_100_000_000)
    assert str(kept) == "Volumes: 3.2 GB, kept in memory (20.1 GB free)"
    read = choose_residency("disk", volume_bytes=3_200_000_000, free_bytes=20_100_000_000)
    assert str(read) == "Volumes: 3.2 GB, read from disk window by window (20.1 GB free)"


def test_the_files_of_all_cases_count(prepared) -> None:
    files = [path for case in prepared.cases for path in (case.image, case.label)]
    assert volume_bytes(prepared.entries) == sum(len(path.read_bytes()) for path in files)


def test_a_previous_stage_counts_and_a_missing_mask_does_not(prepared, tmp_path) -> None:
    write_array(tmp_path / "prior.npy", np.zeros((1, 2, 3, 4), np.int16))
    first = prepared.entries[0]
    entry = replace(first, prior=tmp_path / "prior.npy", case=replace(first.case, label=None))
    assert volume_bytes([entry]) == first.case.image.stat().st_size + 128 + 2 * 2 * 3 * 4


def test_some_memory_is_free() -> None:
    assert free_bytes() > 0
