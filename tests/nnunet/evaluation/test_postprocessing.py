"""Components by hand: what stays, and when a step is worth it."""

import numpy as np
import pytest

from nnunet.evaluation.overlap import OverlapRules, overlap_rules
from nnunet.evaluation.postprocessing import (
    MasksOfCase,
    Postprocessing,
    Step,
    find_postprocessing,
    keep_largest,
    postprocess,
    structure_steps,
)

RULES = overlap_rules(("background", "organ", "lesion"))
NESTED = overlap_rules(
    ("background", "oedema", "core", "enhancing"),
    regions=((1, 2, 3), (2, 3), (3,)),
    region_names=("whole", "core", "enhancing"),
    regions_class_order=(1, 2, 3),
)
LESION = Step(name="lesion", labels=(2,))


def line(*values: int) -> np.ndarray:
    """A mask one voxel thick and deep."""
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def find(*pairs: tuple[np.ndarray, np.ndarray], rules: OverlapRules = RULES) -> Postprocessing:
    read = [MasksOfCase(case_id=str(i), truth=truth, predicted=mask) for i, (truth, mask) in enumerate(pairs)]
    return find_postprocessing(lambda: read, rules)


def test_the_smaller_component_goes_and_other_labels_stay() -> None:
    mask = line(2, 2, 0, 2, 0, 1)
    np.testing.assert_array_equal(keep_largest(mask, LESION), line(2, 2, 0, 0, 0, 1))
    assert mask[3] == 2  # the input is not written to


def test_voxels_that_share_a_corner_are_connected() -> None:
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[0, 0, 1] = mask[1, 1, 2] = 2
    assert keep_largest(mask, LESION) is mask


@pytest.mark.parametrize("values", [(0, 1, 0), (2, 2, 1), (2, 0, 2, 0, 1), (2, 2, 0, 2, 2)])
def test_one_component_none_or_equal_ones_are_left(values: tuple[int, ...]) -> None:
    mask = line(*values)
    assert keep_largest(mask, LESION) is mask


def test_of_three_components_only_those_below_the_largest_go() -> None:
    np.testing.assert_array_equal(keep_largest(line(2, 2, 0, 2, 0, 2, 2), LESION), line(2, 2, 0, 0, 0, 2, 2))


def test_what_an_inner_region_loses_belongs_to_the_region_around_it() -> None:
    steps = {step.name: step for step in structure_steps(NESTED)}
    assert set(steps) == {"core", "enhancing"}  # the whole is all of the foreground
    mask = line(1, 2, 3, 3, 1, 3, 1)
    np.testing.assert_array_equal(keep_largest(mask, steps["core"]), line(1, 2, 3, 3, 1, 1, 1))
    np.testing.assert_array_equal(keep_largest(mask, steps["enhancing"]), line(1, 2, 3, 3, 1, 2, 1))


def test_an_island_of_everything_is_removed_where_no_structure_falls() -> None:
    found = find((line(1, 2, 0, 0, 0), line(1, 2, 0, 1, 0)))
    # Organ: 2 * 1 / (1 + 2) without the step, 1 with it; the lesion is right in both.
    assert [step.name for step in found.steps] == ["all foreground"]
    assert found.trials[0].dice_before == pytest.approx((2 / 3 + 1) / 2)
    assert found.trials[0].dice_after == found.dice_after == 1


def test_the_whole_is_left_where_one_structure_falls_and_the_other_alone_is_cleaned() -> None:
    # A true lesion lies apart from the organ, which has an island of its own.
    truth = line(1, 1, 1, 0, 2, 0, 0, 0)
    mask = line(1, 1, 1, 0, 2, 0, 1, 0)
    found = find((truth, mask))
    assert not found.trials[0].is_applied
    assert [step.name for step in found.steps] == ["organ"]
    np.testing.assert_array_equal(postprocess(mask, found.steps), truth)
    assert found.dice_before == pytest.approx((6 / 7 + 1) / 2)
    assert found.dice_after == 1


def test_the_whole_is_left_where_the_mean_rises_at_the_cost_of_one_structure() -> None:
    truth = line(1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 2)
    found = find((truth, line(1, 1, 2, 2, 2, 2, 0, 1, 0, 0, 2)))
    # Organ 4/5 and lesion 1 would become 1 and 8/9.
    assert found.trials[0].dice_before == pytest.approx((4 / 5 + 1) / 2)
    assert found.trials[0].dice_after == pytest.approx((1 + 8 / 9) / 2)
    assert [step.name for step in found.steps] == ["organ"]
    assert found.dice_after == 1


def test_a_tie_does_not_count() -> None:
    found = find((line(1, 1, 0, 2), line(1, 1, 0, 2)), (line(1, 0, 1, 2, 2), line(1, 0, 1, 2, 2)))
    assert found.steps == ()
    assert found.dice_before == found.dice_after == 1
    assert not any(trial.is_applied for trial in found.trials)


def test_what_helps_one_case_and_harms_another_more_is_not_applied() -> None:
    helped = (line(2, 2, 2, 2, 0, 0), line(2, 2, 2, 2, 0, 2))  # 8/9 becomes 1
    harmed = (line(2, 2, 0, 2, 0, 0), line(2, 2, 0, 2, 0, 0))  # 1 becomes 4/5
    assert find(helped).steps == (Step(name="all foreground", labels=(1, 2)),)
    assert find(helped, harmed).steps == ()


def test_a_structure_that_no_case_shows_takes_no_part_in_the_mean() -> None:
    found = find((line(2, 2, 0, 0), line(2, 2, 0, 2)))
    assert found.dice_before == pytest.approx(4 / 5)
    assert found.dice_after == 1


def test_with_one_label_the_structure_is_not_tried_a_second_time() -> None:
    found = find((line(1, 1, 0, 0), line(1, 1, 0, 1)), rules=overlap_rules(("background", "organ")))
    assert [trial.step.name for trial in found.trials] == ["all foreground"]


def test_a_region_is_not_cleaned_at_the_cost_of_another() -> None:
    # The core loses two false voxels and a true one, which is all of the enhancing tumour.
    truth = line(2, 2, 2, 2, 2, 2, 1, 3, 1, 1, 1)
    mask = line(2, 2, 2, 2, 2, 2, 1, 3, 1, 2, 2)
    found = find((truth, mask), rules=NESTED)
    core = next(trial for trial in found.trials if trial.step.name == "core")
    assert (core.dice_before, core.dice_after) == (14 / 16, 12 / 13)
    assert not core.is_applied
    assert found.steps == ()


def test_a_region_is_judged_on_top_of_those_before_it() -> None:
    # The false island is core and enhancing at once; once the core is clean, enhancing has nothing to lose.
    truth = line(2, 3, 3, 1, 1, 1)
    mask = line(2, 3, 3, 1, 3, 1)
    found = find((truth, mask), rules=NESTED)
    assert [step.name for step in found.steps] == ["core"]
    assert found.dice_after == 1
