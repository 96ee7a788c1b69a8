"""Volumes in memory or on disk: the choice, and what it is told with."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cold_cache import evict, resident_pages
from data_loading import residency
from data_loading.readers import open_volume
from data_loading.residency import RESERVED_BYTES, choose_residency, free_bytes, volume_bytes
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


@pytest.mark.parametrize(
    ("wish", "needed", "gpu_free", "place"),
    [
        ("auto", 50, RESERVED_BYTES + 100, "device"),
        ("auto", 51, RESERVED_BYTES + 100, "memory"),
        ("auto", 51, RESERVED_BYTES - 100, "memory"),
        ("auto", 101, RESERVED_BYTES + 100, "disk"),
        ("auto", 50, None, "memory"),
        ("device", 999, 100, "device"),
        ("memory", 1, RESERVED_BYTES + 100, "memory"),
        ("disk", 1, RESERVED_BYTES + 100, "disk"),
    ],
)
def test_volumes_lie_on_the_gpu_if_half_of_what_training_leaves_holds_them(
    wish, needed: int, gpu_free: int | None, place: str
) -> None:
    """Memory has 200 bytes free, so volumes of 100 at most lie there."""
    choice = choose_residency(wish, volume_bytes=needed, free_bytes=200, device_free_bytes=gpu_free)
    assert choice.place == place
    assert choice.in_memory is (place == "memory")


@pytest.mark.parametrize(
    ("training_bytes", "place"), [(RESERVED_BYTES - 1, "device"), (RESERVED_BYTES + 1, "memory")]
)
def test_a_measured_step_that_needs_more_than_usual_has_its_room_reserved(
    training_bytes: int, place: str
) -> None:
    needs = {"volume_bytes": 50, "free_bytes": 200, "device_free_bytes": RESERVED_BYTES + 100}
    choice = choose_residency("auto", training_bytes=training_bytes, **needs)
    assert choice.place == place
    assert choice.reserved_bytes == max(training_bytes, RESERVED_BYTES)


@pytest.mark.parametrize(
    ("gpu_free", "told"),
    [
        (
            48_000_000_000,
            "Volumes: 3.2 GB, kept in GPU memory, all of them on each GPU (20.1 GB free; GPU: 48.0 GB free, "
            "8.0 GB reserved for training, half of the rest, 20.0 GB, for volumes)",
        ),
        (
            7_000_000_000,
            "Volumes: 3.2 GB, kept in memory (20.1 GB free; GPU: 7.0 GB free, 8.0 GB reserved for training, "
            "half of the rest, 0.0 GB, for volumes)",
        ),
    ],
)
def test_with_a_gpu_its_numbers_are_told_too(gpu_free: int, told: str) -> None:
    choice = choose_residency(
        "auto", volume_bytes=3_200_000_000, free_bytes=20_100_000_000, device_free_bytes=gpu_free
    )
    assert str(choice) == told


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


def test_in_memory_means_that_every_page_is_read_ahead(tmp_path: Path) -> None:
    """24 MB: more than any read-ahead of the system."""
    write_array(tmp_path / "a_x.npy", np.ones((1, 48, 512, 512), np.float16))
    try:
        evict(tmp_path / "a_x.npy")
    except OSError:
        pytest.skip("this file system keeps its pages in memory anyway")
    volume = open_volume(tmp_path / "a_x.npy", in_memory=True)
    pages = -(-(tmp_path / "a_x.npy").stat().st_size // 4096)
    deadline = time.monotonic() + 20
    while resident_pages(volume.path) < pages and time.monotonic() < deadline:
        time.sleep(0.05)  # the system reads in the background
    assert resident_pages(volume.path) == pages


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 500000\nactive_file 7\n")
    monkeypatch.setattr(residency, "CONTAINER", tmp_path)
    assert free_bytes() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() > 4_000_000
    monkeypatch.setattr(residency, "CONTAINER", tmp_path / "none")
    assert free_bytes() > 4_000_000
