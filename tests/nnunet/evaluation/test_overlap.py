"""Overlap counts and their edge cases, small enough for a pencil."""

import numpy as np
import pytest

from nnunet.evaluation import overlap
from nnunet.evaluation.overlap import (
    CaseSource,
    dice_per_label,
    evaluate_case,
    failed_case,
    label_confusion,
    overlap_rules,
    structure_counts,
)
from utils.errors import DatasetError

TRUTH = np.array([[[0, 1, 1, 2]]])
PREDICTED = np.array([[[1, 1, 2, 2]]])
RULES = overlap_rules(["background", "pancreas", "lesion"])


def test_each_voxel_is_counted_in_one_of_four_fields() -> None:
    counts = structure_counts(label_confusion(TRUTH, PREDICTED, 3), (1,))
    fields = (counts.true_positives, counts.false_positives, counts.false_negatives, counts.true_negatives)
    assert fields == (1, 1, 1, 1)
    assert (counts.n_pred, counts.n_ref) == (2, 2)


def test_dice_is_two_thirds_where_the_iou_is_a_half() -> None:
    lesion = evaluate_case("a", TRUTH, PREDICTED, RULES).structures[1]
    assert lesion.dice == pytest.approx(2 / 3)
    assert lesion.iou == pytest.approx(1 / 2)


def test_the_whole_organ_forgives_a_confusion_of_labels() -> None:
    organ = evaluate_case("a", TRUTH, PREDICTED, RULES).whole_organ
    assert organ.dice == pytest.approx(6 / 7)


def test_a_region_is_the_union_of_its_labels() -> None:
    rules = overlap_rules(["background", "edema", "core"], regions=[(1, 2), (2,)])
    case = evaluate_case("a", TRUTH, PREDICTED, rules)
    assert [item.structure.key for item in case.structures] == ["(1, 2)", "2"]
    assert case.structures[0].structure.name == "edema + core"
    assert case.structures[0].dice == case.whole_organ.dice


@pytest.mark.parametrize(("empty", "expected"), [("nan", np.nan), ("one", 1.0)])
def test_a_structure_empty_in_both_masks_follows_the_rule(empty: overlap.EmptyRule, expected: float) -> None:
    nothing = np.zeros((1, 2, 2), dtype=np.uint8)
    case = evaluate_case("a", nothing, nothing, overlap_rules(["background", "lesion"], empty=empty))
    np.testing.assert_equal(case.structures[0].dice, expected)
    np.testing.assert_equal(case.structures[0].iou, expected)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_structure_empty_in_one_mask_has_dice_zero(swapped: bool) -> None:  # noqa: FBT001
    masks = (np.zeros((1, 2, 2), dtype=np.uint8), np.ones((1, 2, 2), dtype=np.uint8))
    truth, predicted = masks[::-1] if swapped else masks
    assert evaluate_case("a", truth, predicted, overlap_rules(["background", "x"])).structures[0].dice == 0


def test_ignored_voxels_are_not_counted() -> None:
    truth, predicted = np.array([[[1, 3, 3]]]), np.array([[[1, 1, 2]]])
    rules = overlap_rules(["background", "a", "b", "ignore"], ignore_label=3)
    case = evaluate_case("a", truth, predicted, rules)
    assert [item.structure.name for item in case.structures] == ["a", "b"]
    assert case.structures[0].dice == 1
    assert case.structures[0].counts.true_negatives == 0


def test_voxels_outside_the_nonzero_mask_count_as_background() -> None:
    confusion = label_confusion(np.array([-1, 0, 1]), np.array([0, 0, 1]), 2)
    assert confusion.tolist() == [[2, 0], [0, 1]]


def test_blocks_add_up_to_one_count_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, (2, 5, 7, 9)).astype(np.uint8)
    whole = label_confusion(truth, predicted, 3)
    monkeypatch.setattr(overlap, "VOXELS_PER_BLOCK", 17)
    np.testing.assert_array_equal(label_confusion(truth, predicted, 3), whole)
    assert whole[1, 2] == ((truth == 1) & (predicted == 2)).sum()


def test_many_labels_do_not_overflow_a_small_integer_type() -> None:
    truth = np.full((1, 1, 2), 103, dtype=np.uint8)
    assert label_confusion(truth, truth, 104)[103, 103] == 2


def test_different_shapes_are_an_error_that_names_the_case() -> None:
    with pytest.raises(DatasetError, match=r"Case a17: .*\(1, 1, 4\).*\(1, 1, 3\)"):
        evaluate_case("a17", TRUTH, PREDICTED[..., :3], RULES)


@pytest.mark.parametrize("value", [7, -1])
def test_an_undeclared_predicted_value_is_an_error(value: int) -> None:
    with pytest.raises(DatasetError, match=f"prediction holds the label value {value}"):
        label_confusion(TRUTH, np.full_like(TRUTH, value), 3)


def test_probabilities_instead_of_labels_are_an_error() -> None:
    with pytest.raises(DatasetError, match="float64"):
        label_confusion(TRUTH, PREDICTED / 2, 3)


def test_dice_per_label_starts_with_the_background_and_marks_absent_labels() -> None:
    dice = dice_per_label(TRUTH, PREDICTED, 4)
    np.testing.assert_allclose(dice, [0, 1 / 2, 2 / 3, np.nan])


def test_a_case_without_prediction_scores_zero_even_for_an_empty_structure() -> None:
    case = failed_case("a", np.array([[[0, 1]]]), RULES, source=CaseSource(voxel_ml=0.5))
    assert [item.dice for item in case.structures] == [0, 0]
    assert case.structures[0].counts.false_negatives == 1
    assert case.is_missing


def test_scores_carry_the_volumes_in_millilitres() -> None:
    case = evaluate_case("a", TRUTH, PREDICTED, RULES, source=CaseSource(voxel_ml=0.25))
    volumes = {(s.target, s.metric): s.value for s in case.to_scores() if s.unit == "ml"}
    assert volumes[("whole organ", "volume_reference")] == 0.75
    assert volumes[("whole organ", "volume_predicted")] == 1.0


def test_a_region_has_the_name_that_the_dataset_gives_it() -> None:
    rules = overlap_rules(["background", "a", "b"], regions=[(1, 2), (2,)], region_names=["whole", "core"])
    assert [item.name for item in rules.structures] == ["whole", "core"]
