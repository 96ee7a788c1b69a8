"""The CSV tables: what is written, and what is refused on reading."""

import csv
from pathlib import Path

import numpy as np
import pytest

from nnunet.evaluation.overlap import CaseSource, evaluate_case, overlap_rules
from nnunet.evaluation.tables import (
    METRIC_COLUMNS,
    read_class_names,
    read_class_predictions,
    write_overlap_table,
)
from utils.errors import DatasetError

NAMES = ("benign", "malignant")
HEADER = "case,prob_benign,prob_malignant,predicted_class\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_case_has_a_row_per_label_and_one_for_the_organ(tmp_path: Path) -> None:
    rules = overlap_rules(["background", "pancreas", "lesion, cystic"])
    case = evaluate_case(
        "a", np.array([1, 1, 0]), np.array([1, 0, 0]), rules, source=CaseSource(voxel_ml=0.5)
    )
    write_overlap_table(tmp_path / "metrics.csv", [case])
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == METRIC_COLUMNS
    assert [row["label"] for row in rows] == ["pancreas", "lesion, cystic", "whole organ"]
    assert rows[1]["Dice"] == ""
    assert (rows[0]["volume_ref_ml"], rows[0]["volume_pred_ml"], rows[0]["Dice"]) == ("1", "0.5", "0.666667")


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_predictions_are_read_with_either_separator_and_a_byte_order_mark(
    tmp_path: Path, separator: str, mark: str
) -> None:
    text = (HEADER + "b,0.2,0.8,malignant\na,0.7,0.3,benign\n").replace(",", separator)
    table = read_class_predictions(write(tmp_path, mark + text), NAMES)
    assert table.case_ids == ("b", "a")
    np.testing.assert_array_equal(table.class_probs, [[0.2, 0.8], [0.7, 0.3]])


def test_columns_are_found_by_name_not_by_place(tmp_path: Path) -> None:
    path = write(tmp_path, "prob_malignant,case,prob_benign\n0.8,b,0.2\n")
    np.testing.assert_array_equal(read_class_predictions(path, NAMES).class_probs, [[0.2, 0.8]])
    assert read_class_names(path) == ("malignant", "benign")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,prob_benign\na,1\n", "lacks the columns .'prob_malignant'"),
        (HEADER + "a,1,0,benign\na,1,0,benign\n", "line 3: the case 'a' is empty or occurs twice"),
        (HEADER + "a,x,0,benign\n", "line 2: prob_benign should be a probability"),
        (HEADER + "a,nan,0,benign\n", "line 2: prob_benign should be a probability"),
        (HEADER + "a,1\n", "line 2: prob_malignant should be a probability"),
        (HEADER + "a,0.9,0.1,malignant\n", "line 2: predicted_class is 'malignant', but 'benign'"),
        (HEADER + "a,0.9,0.1,harmless\n", "predicted_class 'harmless' is none of"),
    ],
)
def test_a_faulty_table_is_an_error_that_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_class_predictions(write(tmp_path, text), NAMES)
