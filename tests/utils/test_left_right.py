"""Sides: which names are pairs, and what changes places with them."""

from collections.abc import Callable

import pytest

from utils.contracts import Plan
from utils.errors import UserError
from utils.left_right import (
    declared_pairs,
    image_order,
    label_pairs,
    left_right_axis,
    left_right_line,
    logit_order,
    lonely_names,
    named_pairs,
    with_left_right,
)

KIDNEYS = ("background", "kidney_left", "kidney_right", "tumour")


@pytest.fixture
def kidneys(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(label_names=KIDNEYS, num_labels=4)


@pytest.mark.parametrize(
    "names",
    [
        ("kidney_left", "kidney_right"),
        ("left lung", "right lung"),
        ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
        ("femur_L", "femur_R"),
        ("LKidney", "RKidney"),
        ("kidneyLeft", "kidneyRight"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("rib_left_1", "rib_right_1"),
        ("L", "R"),
        ("Niere links", "Niere rechts"),
    ],
)
def test_names_that_differ_in_their_side_are_a_pair(names: tuple[str, str]) -> None:
    assert named_pairs(("background", *names)) == ((1, 2),)
    assert named_pairs((names[1], "background", names[0])) == ((0, 2),)
    assert lonely_names(names) == ()


@pytest.mark.parametrize(
    "names",
    [
        ("Anterior", "Posterior"),
        ("vertebra_L1", "vertebra_R1"),
        ("kidney_left", "kidney_right_cyst"),
        ("heart_atrium_left", "heart_atrium_right"),
        ("left ventricle", "right ventricle"),
        ("liver left lobe", "liver right lobe"),
        ("kidney left", "kidney_left", "kidney_right"),
        ("leftover", "rightover"),
    ],
)
def test_other_names_are_not(names: tuple[str, ...]) -> None:
    assert named_pairs(names) == ()


def test_a_name_with_a_side_and_without_partner_is_lonely() -> None:
    names = ("kidney_left", "kidney_right", "atrium_left", "spleen", "lung_R")
    assert lonely_names(names) == ("atrium_left", "lung_R")


def test_labels_swap_as_the_regions_that_hold_them() -> None:
    # left kidney 1 with tumour 3, right kidney 2 with tumour 4, and all of it
    regions = ((1, 3), (2, 4), (3,), (4,), (1, 2, 3, 4))
    assert label_pairs([(0, 1), (2, 3)], regions) == ((1, 2), (3, 4))


def test_regions_without_counterpart_are_refused() -> None:
    with pytest.raises(UserError, match=r"no label corresponds to \[3\]"):
        label_pairs([(0, 1)], ((1, 3), (2, 4), (3,), (4,)))


@pytest.mark.parametrize(
    "named",
    [
        [("kidney_left", "liver")],
        [("kidney_left",)],
        [("kidney_left", "kidney_right")] * 2,
        [("background", "tumour")],
    ],
)
def test_odd_declared_pairs_are_refused(named: list[tuple[str, ...]]) -> None:
    with pytest.raises(UserError, match="left and right should"):
        declared_pairs(named, KIDNEYS)


def test_x_is_followed_through_the_order_of_axes(make_plan: Callable[..., Plan]) -> None:
    assert [left_right_axis(make_plan(axis_order=order)) for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0))] == [
        2,
        0,
        1,
    ]


def test_pairs_are_found_and_swap(kidneys: Plan) -> None:
    plan = with_left_right(kidneys, "auto")
    assert (plan.left_right_pairs, plan.left_right) == (((1, 2),), "swap")
    assert logit_order(plan, ((1, 2),)) == (0, 2, 1, 3)
    assert left_right_line(plan) == (
        "Left and right: kidney_left and kidney_right change places in patches mirrored along x."
    )


def test_without_sides_nothing_changes_and_nothing_is_said(make_plan: Callable[..., Plan]) -> None:
    plan = with_left_right(make_plan(), "auto")
    assert (plan.left_right_pairs, plan.left_right, left_right_line(plan)) == ((), "plain", "")


def test_the_named_pairs_win_over_the_declared_and_these_over_the_names(make_plan) -> None:  # noqa: ANN001
    plan = make_plan(label_names=(*KIDNEYS, "cyst"), num_labels=5, left_right_pairs=((3, 4),))
    assert with_left_right(plan, "auto").left_right_pairs == ((3, 4),)
    assert with_left_right(plan, "auto", ["cyst:kidney_left"]).left_right_pairs == ((4, 1),)
    assert with_left_right(plan, "auto", ["none"]).left_right == "plain"


def test_a_dataset_may_declare_that_there_are_none(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(label_names=KIDNEYS, num_labels=4, left_right_pairs=())
    assert with_left_right(plan, "auto").left_right == "plain"
    with pytest.raises(UserError, match="no two labels are called left and right"):
        with_left_right(plan, "swap")


@pytest.mark.parametrize(("choice", "told"), [("off", "are not mirrored"), ("plain", "keep their labels")])
def test_a_choice_is_kept_and_told(kidneys: Plan, choice: str, told: str) -> None:
    plan = with_left_right(kidneys, choice)
    assert plan.left_right == choice
    assert told in left_right_line(plan)


def test_a_lonely_side_is_told(make_plan: Callable[..., Plan]) -> None:
    plan = with_left_right(make_plan(label_names=("background", "organ", "lung_L")), "auto")
    assert plan.left_right == "plain"
    assert "lung_L keep their labels" in left_right_line(plan)


def test_regions_swap_with_their_labels(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(
        label_names=("background", "a", "b", "c", "d"),
        num_labels=5,
        regions=((1, 2, 3, 4), (1, 3), (2, 4), (3, 4)),
        region_names=("all", "kidney_left", "kidney_right", "tumour"),
        regions_class_order=(1, 2, 3, 4),
    )
    plan = with_left_right(plan, "auto")
    assert plan.left_right_pairs == ((1, 2), (3, 4))
    assert logit_order(plan, plan.left_right_pairs) == (0, 2, 1, 3)


def test_regions_that_a_swap_would_tear_apart_are_not_mirrored(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(
        label_names=KIDNEYS,
        num_labels=4,
        regions=((1, 2, 3), (1, 3), (3,)),
        region_names=("all", "one side", "tumour"),
        regions_class_order=(2, 1, 3),
        left_right_pairs=((1, 2),),
    )
    assert with_left_right(plan, "auto").left_right == "off"
    with pytest.raises(UserError, match="labels of one side would then be no region"):
        with_left_right(plan, "swap")


def test_channels_of_a_previous_stage_swap_behind_those_of_the_image(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(num_channels=2, prior_labels=3)
    assert image_order(plan, ((1, 2),)) == (0, 1, 3, 2, 4)
    assert image_order(make_plan(num_channels=2), ((1, 2),)) == (0, 1)
