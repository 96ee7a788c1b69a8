"""Predictions and references meet by case name, and every gap is named."""

from pathlib import Path

import pytest

from nnunet.evaluation.pairing import keep_cases, masks_in, pair_masks
from utils.errors import DatasetError

REFERENCES = {"a": Path("a.nii.gz"), "b": Path("b.nii.gz")}


def test_masks_are_found_by_name_whatever_their_format(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii", "c.npy", "predictions.csv", ".hidden.npy"):
        (tmp_path / name).touch()
    assert list(masks_in(tmp_path)) == ["a", "b", "c"]


def test_two_masks_of_one_case_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.npy").touch()
    with pytest.raises(DatasetError, match="Case a has two files"):
        masks_in(tmp_path)


def test_a_missing_prediction_is_an_error_that_names_the_case() -> None:
    with pytest.raises(DatasetError, match="1 of 2 cases have no prediction: b"):
        pair_masks({"a": Path("a.npy")}, REFERENCES)


def test_a_missing_prediction_can_be_allowed() -> None:
    pairing = pair_masks({"a": Path("a.npy")}, REFERENCES, allow_missing=True)
    assert [(pair.case_id, pair.prediction) for pair in pairing.pairs] == [("a", Path("a.npy")), ("b", None)]


def test_a_prediction_without_reference_is_named() -> None:
    predictions = {"a": Path("a.npy"), "b": Path("b.npy"), "quiz": Path("quiz.npy")}
    assert pair_masks(predictions, REFERENCES).without_reference == ("quiz",)


def test_folders_without_a_common_name_are_an_error_even_when_gaps_are_allowed() -> None:
    with pytest.raises(DatasetError, match="No prediction has the name of a reference; predictions: z"):
        pair_masks({"z": Path("z.npy")}, REFERENCES, allow_missing=True)


def test_a_split_may_only_name_known_cases() -> None:
    assert list(keep_cases(REFERENCES, ("b",))) == ["b"]
    with pytest.raises(DatasetError, match="without a reference mask: z"):
        keep_cases(REFERENCES, ("b", "z"))
