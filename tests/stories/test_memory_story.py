"""Commands that would run out of memory say so before the first case is read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing import workers
from scripts import inference, memory_check
from scripts.run_options import RunOptions
from tests.data_preprocessing.test_case_memory import write_header
from tests.stories.conftest import Phantom
from tests.stories.made_dataset import prepare, write_dataset
from utils.errors import DatasetError
from utils.machine import Memory

pytestmark = pytest.mark.story


def have(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    memory = Memory(total_bytes=free, available_bytes=free, container_limit_bytes=None)
    monkeypatch.setattr(memory_check, "read_memory", lambda: memory)


def test_nothing_is_prepared_where_a_case_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path)
    have(monkeypatch, 50_000)
    with pytest.raises(DatasetError, match=r"Case case_0: its 18 x 22 x 20 voxels need(.|\n)*Nothing was"):
        prepare(data)
    assert not list((tmp_path / "results").glob("007_3d/*"))


def test_nothing_is_prepared_where_the_planned_grid_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 3000 // num_cases)
    data = write_dataset(tmp_path)
    have(monkeypatch, 5_000_000)
    prepare(data)
    with pytest.raises(DatasetError, match="Case case_2: its 18 x 22 x 20 voxels need"):
        prepare(data, "--overwrite_target_spacing", "0.2", "0.2", "0.2")
    assert not list((tmp_path / "results" / "007_3d").glob("case_*"))


def test_a_scan_that_is_too_large_is_named_and_the_others_are_predicted(
    trained: Path,
    phantom: Phantom,
    run_options: Callable[..., RunOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan = next((phantom.raw / "test").iterdir())
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / scan.name).write_bytes(scan.read_bytes())
    write_header(tmp_path / "scans" / "huge_0000.nii", (1500, 1500, 1500), np.int16)
    have(monkeypatch, 16 * 10**9)
    words = ["--exec_mode", "predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "out")]
    with pytest.raises(DatasetError, match="Case huge: its 1500 x 1500 x 1500 voxels need 20.25 GB"):
        inference.run(run_options(trained, *words))
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1
