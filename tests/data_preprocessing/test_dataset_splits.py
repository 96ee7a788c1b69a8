"""Whose folds a prepared folder has after a rerun."""

from pathlib import Path

import pytest

from data_preprocessing.dataset_splits import bring_splits
from utils.prepared_folder import SPLITS
from utils.storage import read_json, write_json

OWN = [{"train": ["a", "b"], "val": ["c"]}]
BY_HAND = [{"train": ["c", "b"], "val": ["a"]}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset with folds of its own."""
    (tmp_path / "raw").mkdir()
    write_json(tmp_path / "raw" / SPLITS, OWN)
    return tmp_path / "raw"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prepared").mkdir()
    return tmp_path / "prepared"


def test_the_copy_goes_with_the_datasets_own_file(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = bring_splits(root, folder, None)
    assert read_json(folder / SPLITS) == OWN
    assert capsys.readouterr().err == ""
    (root / SPLITS).unlink()
    assert bring_splits(root, folder, recorded) is None
    assert not (folder / SPLITS).exists()
    assert "is removed: it was a copy" in capsys.readouterr().err


@pytest.mark.parametrize("was_copied", [True, False])
def test_folds_written_by_hand_stay_and_are_told(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str], *, was_copied: bool
) -> None:
    recorded = bring_splits(root, folder, None) if was_copied else None
    (root / SPLITS).unlink()
    write_json(folder / SPLITS, BY_HAND)
    assert bring_splits(root, folder, recorded) is None
    assert read_json(folder / SPLITS) == BY_HAND
    assert "stay in force" in capsys.readouterr().err


def test_folds_beside_the_dataset_win_and_say_so(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(folder / SPLITS, BY_HAND)
    recorded = bring_splits(root, folder, None)
    assert read_json(folder / SPLITS) == OWN
    assert "is replaced by" in capsys.readouterr().err
    write_json(root / SPLITS, BY_HAND)
    bring_splits(root, folder, recorded)
    assert read_json(folder / SPLITS) == BY_HAND
    assert capsys.readouterr().err == ""  # the copy was nobody's work
