"""What is said, and what is refused, where the largest cases need more memory than there is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts import memory_check
from scripts.memory_check import check_preparing, check_reading, free_bytes, too_large_scans
from tests.data_preprocessing.test_case_memory import write_header, write_picture_header
from utils.contracts import Plan, RawCase
from utils.errors import DatasetError
from utils.machine import Memory

MakePlan = Callable[..., Plan]
GB = 10**9


@pytest.fixture
def cases(tmp_path: Path) -> list[RawCase]:
    """Two of 100^3 voxels (reading one takes 6 MB), and one of 1500^3 (20 GB), which is no larger on disk."""
    for name, edge in (("a", 100), ("b", 100), ("huge", 1500)):
        write_header(tmp_path / f"{name}.nii", (edge, edge, edge), np.int16)
    return [
        RawCase(case_id=name, patient_id=name, images=(tmp_path / f"{name}.nii",))
        for name in ("a", "b", "huge")
    ]


def have(monkeypatch: pytest.MonkeyPatch, free: int | None, limit: int | None = None) -> None:
    memory = Memory(total_bytes=free, available_bytes=free, container_limit_bytes=limit)
    monkeypatch.setattr(memory_check, "read_memory", lambda: memory)


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 64 * GB, 8 * GB)
    assert free_bytes() == 8 * GB
    have(monkeypatch, None)
    assert free_bytes() is None


def test_a_case_that_cannot_be_read_is_refused_by_name(
    cases: list[RawCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 16 * GB)
    with pytest.raises(
        DatasetError, match=r"Case huge: its 1500 x 1500 x 1500 voxels need 20.25 GB"
    ) as caught:
        check_reading(cases, num_jobs=2)
    assert "16.00 GB are free" in str(caught.value)
    assert "Case a" not in str(caught.value)


def test_a_case_that_may_fit_is_told_with_the_number_of_jobs_that_needs_less(
    cases: list[RawCase],
    make_plan: MakePlan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = make_plan(spacing_mm=(2.0, 1.0, 1.0))
    have(monkeypatch, 40_000_000)
    check_preparing(cases[:2], plan, None, num_jobs=2)
    said = capsys.readouterr().err
    assert said == (
        "Memory to prepare the largest case, a (100 x 100 x 100 voxels): up to 0.02 GB, 2 at a time up to "
        "0.03 GB; 0.04 GB are free. --n_jobs 1 needs less.\n"
    )


def test_the_need_is_told_in_one_line_where_memory_is_plenty_or_unknown_too(
    cases: list[RawCase],
    make_plan: MakePlan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    have(monkeypatch, 64 * GB)
    check_reading(cases[:2], num_jobs=1)
    assert too_large_scans(cases[:2], [make_plan()]) == {}
    have(monkeypatch, None)
    check_reading(cases, num_jobs=1)
    read, predicted, unknown = capsys.readouterr().err.splitlines()
    assert read.startswith("Memory to read the largest case, a (100 x 100 x 100 voxels): up to ")
    assert read.endswith(" GB; 64.00 GB are free.")
    assert predicted.startswith("Memory to predict the largest case, a (")
    assert unknown.startswith("Memory to read the largest case, huge (1500 x 1500 x 1500 voxels): up to ")
    assert "free" not in unknown
    check_reading([], num_jobs=1)
    assert capsys.readouterr().err == ""


def test_pictures_and_series_are_estimated_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture_header(tmp_path / "wall.png", 30000, 30000)
    case = RawCase(case_id="wall", patient_id="wall", images=(tmp_path / "wall.png",))
    have(monkeypatch, 8 * GB)
    with pytest.raises(DatasetError, match=r"Case wall: its 1 x 30000 x 30000 voxels need 13.50 GB"):
        check_reading([case], num_jobs=1)
    have(monkeypatch, 64 * GB)
    check_reading([case], num_jobs=1)
    assert "the largest case, wall (1 x 30000 x 30000 voxels): up to " in capsys.readouterr().err


def test_a_scan_that_does_not_fit_leaves_the_others_to_be_predicted(
    cases: list[RawCase], make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 16 * GB)
    refused = too_large_scans(cases, [make_plan()])
    assert list(refused) == ["huge"]
    assert "need 20.25 GB of memory at once, and 16.00 GB are free" in refused["huge"]
