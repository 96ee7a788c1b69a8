"""Files under the names and with the fields of the reference systems, and how they are read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import classification_report

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.class_answers import (
    class_index,
    find_class_answers,
    names_in,
    read_class_answers,
    texts_in,
)
from nnunet.evaluation.class_files import final_fields, metrics_record
from nnunet.evaluation.class_outputs import ClassAnswer, case_record, subtype_table, write_class_files
from nnunet.evaluation.classification import summarise_classes, summarise_classification
from nnunet.evaluation.overlap import CaseSource, evaluate_case, overlap_rules
from nnunet.evaluation.summary import summarise_segmentation
from utils.errors import DatasetError

FEW = Resampling(num_resamples=20)
NAMES = ("0", "1", "2")
ANSWERS = (
    ClassAnswer(case_id="quiz_2", class_probs=(0.2, 0.1, 0.7)),
    ClassAnswer(case_id="quiz_1", class_probs=(0.5, 0.5, 0.0)),
)
CONFUSION = [[4, 1, 4], [2, 9, 4], [0, 5, 7]]
TARGET = np.repeat([0, 1, 2], np.sum(CONFUSION, axis=1))
PREDICTED = np.concatenate([np.repeat([0, 1, 2], row) for row in CONFUSION])


def test_the_subtype_table_names_a_mask_by_its_own_ending() -> None:
    answer = ClassAnswer(case_id="a", class_probs=(0.2, 0.1, 0.7), mask_ending=".nrrd")
    assert subtype_table([answer], NAMES) == "Names,Subtype\na.nrrd,2\n"


def test_the_subtype_table_names_the_masks_and_gives_a_tie_to_the_first_class() -> None:
    assert subtype_table(ANSWERS, NAMES) == "Names,Subtype\nquiz_1.nii.gz,0\nquiz_2.nii.gz,2\n"


def test_the_record_of_a_case_has_logits_whose_softmax_is_the_answer() -> None:
    record = case_record(ANSWERS[1], NAMES)
    assert {"logits", "probs", "pred", "num_classes"} <= set(record)
    assert (record["pred"], record["num_classes"]) == (0, 3)
    np.testing.assert_allclose(softmax(record["logits"]), ANSWERS[1].class_probs, atol=1e-12)


def test_metrics_have_the_names_of_the_reference_systems_beside_ours() -> None:
    record = metrics_record(summarise_classes(TARGET, PREDICTED, NAMES, resampling=FEW))
    assert (record["n_samples"], record["confusion_matrix"]) == (36, CONFUSION)
    assert record["confusion"]["rows"] == "reference"
    assert record["accuracy"] == record["f1_micro"] == record["precision_micro"] == pytest.approx(20 / 36)
    assert record["f1_macro"] == record["macro_f1"]
    assert record["auc_macro"] is None
    assert "auc" not in record
    expected = classification_report(TARGET, PREDICTED, target_names=NAMES, output_dict=True)
    assert isinstance(expected, dict)
    for name, line in expected.items():
        assert record["classification_report"][name] == pytest.approx(line)
    json.dumps(record, allow_nan=False)


def test_two_classes_have_one_auc() -> None:
    summary = summarise_classification(np.array([0, 1]), np.eye(2), "ab", resampling=FEW)
    assert metrics_record(summary)["auc"] == 1.0


def test_a_class_without_cases_is_null_and_changes_no_average() -> None:
    record = metrics_record(summarise_classes(TARGET, PREDICTED, (*NAMES, "3"), resampling=FEW))
    shorter = metrics_record(summarise_classes(TARGET, PREDICTED, NAMES, resampling=FEW))
    assert record["f1_per_class"][3] is None
    for name in ("f1_macro", "precision_macro", "recall_macro", "f1_weighted"):
        assert record[name] == shorter[name]


def test_final_fields_hold_the_numbers_of_classes_and_masks() -> None:
    rules = overlap_rules(["background", "pancreas", "lesion"])
    truth, predicted = np.array([1, 1, 2, 0]), np.array([1, 0, 2, 2])
    case = evaluate_case("a", truth, predicted, rules, source=CaseSource(voxel_ml=0.5))
    segmentation = summarise_segmentation([case], resampling=FEW)
    probs = np.eye(3)[PREDICTED] + np.random.default_rng(0).dirichlet(np.ones(3), 36)
    probs /= probs.sum(axis=1, keepdims=True)
    summary = summarise_classification(TARGET, probs, NAMES, resampling=FEW)
    fields = final_fields(summary, segmentation, {"lesion": 0.25})
    assert fields["val_dsc_class1_mean"] == pytest.approx(2 / 3)
    assert fields["val_dsc_whole_pancreas_mean"] == pytest.approx(2 * 2 / (3 + 3))
    assert (fields["val_avd_class1_mean"], fields["val_avd_class2_mean"]) == (0.5, 0.5)
    assert (fields["val_nsd_class1_mean"], fields["val_nsd_class2_mean"]) == (None, 0.25)
    assert fields["val_ece"] == summary.probability.ece_10 != summary.probability.ece
    assert fields["class_1_support"] == 15
    assert fields["class_1_accuracy"] == pytest.approx((9 + 15) / 36)
    wanted = ("val_balanced_accuracy", "val_f1_macro", "val_f1_weighted", "val_auroc", "val_lr_plus")
    assert all(fields[name] is not None for name in (*wanted, "val_brier_score", "class_2_auroc"))
    assert final_fields(None, None) == {}


def test_answers_are_read_back_from_either_file(tmp_path: Path) -> None:
    write_class_files(tmp_path, ANSWERS, NAMES)
    assert find_class_answers(tmp_path) == tmp_path
    assert names_in(tmp_path) == NAMES
    records = read_class_answers(tmp_path, NAMES)
    assert records.case_ids == ("quiz_1", "quiz_2")
    assert records.class_probs is not None
    np.testing.assert_allclose(records.class_probs, [ANSWERS[1].class_probs, ANSWERS[0].class_probs])
    table = read_class_answers(tmp_path / "subtype_results.csv", NAMES)
    assert (table.case_ids, table.predicted.tolist()) == (records.case_ids, records.predicted.tolist())
    assert table.class_probs is None
    assert texts_in(tmp_path / "subtype_results.csv") == ("0", "2")


def test_a_table_with_probabilities_comes_before_the_others(tmp_path: Path) -> None:
    write_class_files(tmp_path, ANSWERS, NAMES)
    table = tmp_path / "predictions.csv"
    table.write_text("case,prob_0,prob_1,prob_2,volume_ml_a,volume_ml_b\nq,0.1,0.2,0.7,3.5,0\n")
    assert find_class_answers(tmp_path) == table
    # Classes may have better names than the columns' indices.
    answers = read_class_answers(table, ("low", "middle", "high"))
    assert answers.predicted.tolist() == [2]
    assert answers.volumes_ml is not None
    assert answers.volumes_ml.tolist() == [[3.5, 0.0]]


def test_names_of_a_record_without_any_are_indices(tmp_path: Path) -> None:
    record = {"logits": [0, 1], "probs": [0.3, 0.7], "pred": 1, "num_classes": 2}
    (tmp_path / "a_classification.json").write_text(json.dumps(record))
    assert names_in(tmp_path) == ("0", "1")
    assert read_class_answers(tmp_path / "a_classification.json", ("no", "yes")).predicted.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "names", "index"),
    [
        ("yes", ("no", "yes"), 1),
        ("1", ("no", "yes"), 1),
        ("2", ("no", "yes"), None),
        ("maybe", ("no", "yes"), None),
        ("1", ("1", "2"), 0),
        ("0", ("1", "2"), None),
    ],
)
def test_an_entry_is_a_name_or_an_index_but_never_both(
    text: str, names: tuple[str, ...], index: int | None
) -> None:
    assert class_index(text, names) == index


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("subtype_results.csv", "Names,Subtype\na,0\na.nii.gz,1\n", "more than one row for a"),
        ("subtype_results.csv", "Names,Subtype\na,3\n", "line 2: a is given the class '3'"),
        ("subtype_results.csv", "a,0\nb,1\n", "lacks the columns"),
        ("a_classification.json", '{"probs": [1, 0], "pred": 0}', "should be 3 probabilities"),
        ("a_classification.json", '{"probs": [1, 0, 0], "pred": 1}', "class 0 is more probable"),
        ("a_classification.json", '{"probs": [1, 0, 0], "pred": 3}', "class index below 3"),
        ("a_classification.json", "[]", "should be 3 probabilities"),
        ("predictions.csv", "case,prob_0,prob_1,prob_2,volume_ml_a\na,1,0,0,-1\n", "negative"),
        ("predictions.csv", "case,prob_0,prob_1,prob_2,volume_ml_a\na,1,0,0,big\n", "not a number"),
    ],
)
def test_a_faulty_file_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_class_answers(tmp_path / name, NAMES)
    assert name in str(caught.value)


def test_a_folder_without_answers_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no predicted classes"):
        find_class_answers(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        find_class_answers(tmp_path / "nowhere")
