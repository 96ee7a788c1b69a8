"""Tables of classes in the forms that this program and the reference systems write."""

import json
from pathlib import Path

import pytest

from data_preprocessing.case_columns import find_class_file, read_class_file
from data_preprocessing.dataset import describe_dataset, read_dataset
from data_preprocessing.faults import FAULT_CODES
from utils.errors import Fault


def texts(path: Path) -> dict[str, str]:
    faults: list[Fault] = []
    cells = read_class_file(path, faults)
    assert faults == []
    return {case_id: cell.text for case_id, cell in cells.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.csv", "case,class\na,0\nb,1\n"),
        ("classes.csv", "case;subtype\na;0\nb;1\n"),
        ("classification_labels.csv", "Case_id,Subtype\na,0\nb,1\n"),
        ("labels.csv", "Name,Subtype\na,0\nb,1\n"),
        ("subtype_results.csv", "Names,Subtype\na.nii.gz,0\nb.nii.gz,1\n"),
        ("classification.json", '{"a": 0, "b": "1"}'),
        ("classification.json", '{"a.nii.gz": 0, "b": 1}'),
    ],
)
def test_every_form_gives_case_and_class(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert texts(tmp_path / name) == {"a": "0", "b": "1"}


def test_the_column_called_class_comes_before_the_one_called_subtype(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("name,subtype,class,case\nx,1,0,a\n")
    assert texts(tmp_path / "classes.csv") == {"a": "0"}


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("classes.csv", "Names,Subtype\na,0\na.nii.gz,1\n", "E122", "already in classes.csv line 2"),
        ("classes.csv", "case,clas\na,0\n", "E121", "Did you mean 'clas'?"),
        ("classes.csv", "", "E121", "empty"),
        ("classes.csv", "case,class\na\n", "E121", "line 2 has 1 entries"),
        ("classification.json", '{"a": 0, "a": 1}', "E121", "occurs twice"),
        ("classification.json", '{"a": 0, "a.nii.gz": 1}', "E122", "repeats the case"),
        ("classification.json", '{"a": 0.5}', "E121", "'a': 0.5"),
        ("classification.json", '{"a": true}', "E121", "'a': True"),
        ("classification.json", "[1]", "E121", "a list"),
    ],
)
def test_a_faulty_table_is_one_fault_that_says_where(
    tmp_path: Path, name: str, content: str, code: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    faults: list[Fault] = []
    read_class_file(tmp_path / name, faults)
    assert [fault.code for fault in faults] == [code]
    assert code in FAULT_CODES
    assert words in str(faults[0])


def test_our_own_table_comes_before_those_of_other_systems(tmp_path: Path) -> None:
    assert find_class_file(tmp_path) is None
    for name in ("classification.json", "classification_labels.csv", "classes.csv"):
        (tmp_path / name).write_text("{}")
        found = find_class_file(tmp_path)
        assert found is not None
        assert found.name == name


def dataset(root: Path, cases: int, **keys: object) -> Path:
    for index in range(cases):
        for name in (f"imagesTr/c{index:02d}_0000.nii.gz", f"labelsTr/c{index:02d}.nii.gz"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1}, **keys}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", ["classification_labels.csv", "classification.json"])
def test_a_dataset_without_a_block_takes_its_classes_from_the_file(tmp_path: Path, name: str) -> None:
    root = dataset(tmp_path, 2)
    content = '{"c00": 1, "c01": 0}' if name.endswith("json") else "Case_id,Subtype\nc00,1\nc01,0\n"
    (root / name).write_text(content)
    read = read_dataset(root)
    assert read.class_names == ("0", "1")
    assert [case.class_target for case in read.training] == [1, 0]


def test_a_block_may_name_a_json_file(tmp_path: Path) -> None:
    root = dataset(tmp_path, 1, classification={"source": "x.json", "classes": ["0", "1"]})
    (root / "x.json").write_text('{"c00": 1}')
    assert read_dataset(root).training[0].class_target == 1


def test_class_ten_comes_behind_class_nine(tmp_path: Path) -> None:
    root = dataset(tmp_path, 11)
    (root / "classification.json").write_text(json.dumps({f"c{index:02d}": index for index in range(11)}))
    assert read_dataset(root).class_names == tuple(str(index) for index in range(11))


def test_a_case_that_the_file_lacks_is_a_fault(tmp_path: Path) -> None:
    root = dataset(tmp_path, 2)
    (root / "classification.json").write_text('{"c00": 1}')
    assert [(fault.code, fault.case_id) for fault in describe_dataset(root).faults] == [("E124", "c01")]
