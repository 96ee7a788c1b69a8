"""The challenge's folders: what becomes a case, and every way in which they can be wrong."""

from pathlib import Path

import pytest

from data_preprocessing.faults import DatasetFaults
from data_preprocessing.pancreas_challenge import has_subtype_folders, read_challenge

CASE = ("train/subtype0/quiz_0_001", "validation/subtype1/quiz_1_002")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One training, one validation and one test case, all files empty."""
    for stem in CASE:
        touch(tmp_path, f"{stem}_0000.nii.gz", f"{stem}.nii.gz")
    touch(tmp_path, "test/quiz_003_0000.nii.gz")
    return tmp_path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_split_subtype_image_and_mask_come_from_the_folders(root: Path) -> None:
    train, validation, test = read_challenge(root).cases
    assert (train.case_id, train.split, train.subtype) == ("quiz_0_001", "train", 0)
    assert train.image == root / "train/subtype0/quiz_0_001_0000.nii.gz"
    assert train.label == root / "train/subtype0/quiz_0_001.nii.gz"
    assert (validation.split, validation.subtype) == ("validation", 1)
    assert (test.case_id, test.split, test.subtype, test.label) == ("quiz_003", "test", None, None)
    assert has_subtype_folders(root / "train")
    assert not has_subtype_folders(root)


def test_validation_and_test_may_be_absent(tmp_path: Path) -> None:
    touch(tmp_path, f"{CASE[0]}_0000.nii.gz", f"{CASE[0]}.nii.gz")
    assert len(read_challenge(tmp_path).cases) == 1


def test_other_files_are_remarks_and_junk_is_silent(root: Path) -> None:
    touch(root, "train/subtype0/notes.txt", "train/subtype0/.DS_Store", "train/readme.md")
    reading = read_challenge(root)
    assert len(reading.cases) == 3
    assert [Path(fault.file).name for fault in reading.remarks] == ["readme.md", "notes.txt"]


@pytest.mark.parametrize(
    ("added", "removed", "code", "words"),
    [
        ((), f"{CASE[0]}.nii.gz", "E109", "lacks its mask"),
        ((), f"{CASE[0]}_0000.nii.gz", "E109", "lacks its image"),
        (
            ("train/subtype0/quiz_2_009_0000.nii.gz", "train/subtype0/quiz_2_009.nii.gz"),
            "",
            "E123",
            "subtype 2",
        ),
        (("train/subtype0/quiz_0_001.nii",), "", "E108", "second file"),
        (("train/subtype0/quiz_0_001_0001.nii.gz",), "", "E112", "channel 0001"),
        (("test/quiz_009.nii.gz",), "", "E111", "channel number"),
        (("test/quiz_0_001_0000.nii.gz",), "", "E108", "train/subtype0"),
    ],
)
def test_what_is_wrong_is_named(
    root: Path, added: tuple[str, ...], removed: str, code: str, words: str
) -> None:
    touch(root, *added)
    if removed:
        (root / removed).unlink()
    with pytest.raises(DatasetFaults) as caught:
        read_challenge(root)
    # Files of a wrong name stand for themselves and their partner.
    assert {fault.code for fault in caught.value.faults} == {code}
    assert words in str(caught.value)


def test_a_folder_without_training_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetFaults, match="no training case"):
        read_challenge(tmp_path)
