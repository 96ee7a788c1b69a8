"""The command that makes a raw data folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_preprocessing.phantom import PhantomOptions
from scripts.download import DownloadOptions, run
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_phantom_lands_below_the_results_folder(tmp_path: Path) -> None:
    root = run(DownloadOptions(results=tmp_path, phantom=PhantomOptions(size="tiny", n_jobs=1)))
    assert root == tmp_path / "Dataset500_PancreasPhantom"
    assert (root / "dataset.json").is_file()


def test_another_task_says_where_to_put_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not available yet.*TaskNN_Name/dataset\.json"):
        run(DownloadOptions(task="07", results=tmp_path))


def test_the_command_ends_with_status_2_for_another_task(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "download.py"), "--task", "07", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Task '07'" in done.stderr
    assert not list(tmp_path.iterdir())
