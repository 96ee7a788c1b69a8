"""Folds keep patients together and classes in proportion, and a wrong split file is refused."""

import json
from pathlib import Path

import pytest

from utils.errors import DatasetError
from utils.splits import Fold, make_folds, pick_fold, read_folds, write_folds

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def cases(number: int) -> list[str]:
    return [f"case_{i:03d}" for i in range(number)]


def test_each_case_is_validated_once_and_trained_in_the_other_folds() -> None:
    names = cases(23)
    folds = make_folds(names, names, [None] * 23, num_folds=5)
    assert sorted(case for fold in folds for case in fold.val) == names
    assert all(sorted(fold.train + fold.val) == names for fold in folds)


def test_no_patient_is_on_both_sides() -> None:
    names = cases(40)
    patients = [f"p{i // 3}" for i in range(40)]
    patient_of = dict(zip(names, patients, strict=True))
    for targets in ([None] * 40, [i % 2 for i in range(40)]):
        for fold in make_folds(names, patients, targets, num_folds=5):
            assert {patient_of[c] for c in fold.train}.isdisjoint(patient_of[c] for c in fold.val)


def test_every_fold_has_its_share_of_a_class() -> None:
    names = cases(50)
    target = {name: int(i < 10) for i, name in enumerate(names)}
    folds = make_folds(names, names, list(target.values()), num_folds=5)
    assert [sum(target[case] for case in fold.val) for fold in folds] == [2] * 5


def test_a_class_rarer_than_the_folds_is_no_error() -> None:
    names = cases(20)
    folds = make_folds(names, names, [0] * 18 + [1, None], num_folds=5)
    assert [len(fold.val) for fold in folds] == [4] * 5


def test_two_cases_of_two_classes_make_two_folds() -> None:
    folds = make_folds(["a", "b"], ["a", "b"], [0, 1], num_folds=2)
    assert {fold.val for fold in folds} == {("a",), ("b",)}


def test_the_order_of_the_cases_does_not_matter() -> None:
    names, targets = cases(20), [i % 3 for i in range(20)]
    backwards = make_folds(names[::-1], names[::-1], targets[::-1], num_folds=4)
    assert make_folds(names, names, targets, num_folds=4) == backwards


def test_another_seed_gives_other_folds() -> None:
    names = cases(20)
    assert len({make_folds(names, names, [None] * 20, num_folds=5, seed=seed) for seed in range(4)}) == 4


@pytest.mark.parametrize(("number", "num_folds"), [(4, 5), (1, 5), (10, 1)])
def test_too_few_patients_or_folds_are_refused(number: int, num_folds: int) -> None:
    with pytest.raises(DatasetError, match=f"there are {number} patients"):
        make_folds(cases(number), cases(number), [None] * number, num_folds=num_folds)


def test_a_case_listed_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="Case a is listed twice"):
        make_folds(["b", "a", "a"], ["b", "a", "a"], [None] * 3, num_folds=2)


def test_folds_survive_the_file_in_the_form_nnunet_reads(tmp_path: Path) -> None:
    folds = (Fold(train=("a", "b"), val=("c",)), Fold(train=("c", "b"), val=("a",)))
    write_folds(tmp_path / "splits_final.json", folds)
    assert read_folds(tmp_path / "splits_final.json") == folds
    text = (tmp_path / "splits_final.json").read_text(encoding="utf-8")
    assert json.loads(text)[0] == {"train": ["a", "b"], "val": ["c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "should be a list"),
        ({"train": ["a"], "val": ["b"]}, "should be a list"),
        ([{"train": ["a"]}], 'fold 0 should have the keys "train" and "val"'),
        ([{"train": ["a"], "val": "b"}], "fold 0: val should be a list of case ids"),
        ([{"train": [], "val": ["b"]}], "fold 0: train is empty"),
        ([{"train": ["a"], "val": []}], "fold 0: val is empty"),
        ([{"train": ["a", "a"], "val": ["b"]}], "fold 0: train lists a more than once"),
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0: b in train and in val"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_fold(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"splits_final\.json") as caught:
        read_folds(tmp_path / "splits_final.json")
    assert message in str(caught.value)


FOLDS = (Fold(train=("a", "b"), val=("c",)),)
FILE = Path("splits_final.json")


def test_a_good_fold_is_returned_even_if_it_leaves_cases_out() -> None:
    assert pick_fold(FOLDS, 0, patients={"a": "1", "b": "2", "c": "3", "d": "4"}, source=FILE) == FOLDS[0]


@pytest.mark.parametrize("fold", [1, -1])
def test_a_fold_that_does_not_exist_is_refused(fold: int) -> None:
    with pytest.raises(DatasetError, match=rf"splits_final\.json has only fold 0, not fold {fold}"):
        pick_fold(FOLDS, fold, patients={}, source=FILE)


def test_the_folds_that_there_are_are_told() -> None:
    with pytest.raises(DatasetError, match=r"splits_final\.json has the folds 0 to 2, not fold 3"):
        pick_fold(FOLDS * 3, 3, patients={}, source=FILE)


def test_a_fold_beyond_the_made_ones_is_refused_by_the_option_that_made_them() -> None:
    with pytest.raises(DatasetError, match=r"^--nfolds 3 has the folds 0 to 2, not fold 3"):
        pick_fold(FOLDS * 3, 3, patients={}, source="--nfolds 3")


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"splits_final\.json: fold 0 lists cases .* not have: b, c"):
        pick_fold(FOLDS, 0, patients={"a": "1"}, source=FILE)


def test_a_patient_on_both_sides_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"splits_final\.json: fold 0 has cases of patient 2 in train and in"
    ):
        pick_fold(FOLDS, 0, patients={"a": "1", "b": "2", "c": "2"}, source=FILE)


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["Dataset010_LIDCNodules", "Task04_Hippocampus"])
def test_the_folds_delivered_with_real_datasets_are_accepted(dataset: str) -> None:
    path = DATA / dataset / "splits_final.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert len(read_folds(path)) == 5
