"""The mirrored views, and what changes places in those that exchange left and right."""

from collections.abc import Callable

import pytest
import torch

from nnunet.inference.mirroring import LeftRight, View, left_right_of, mirrored_views
from utils.contracts import Plan

PAIRS = ((1, 2),)


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    names = ("background", "kidney_left", "kidney_right", "tumour")
    return make_plan(label_names=names, num_labels=4, left_right_pairs=PAIRS, left_right="swap")


def test_a_volume_has_eight_views_the_identity_first() -> None:
    views = mirrored_views((4, 8, 8))
    assert len(set(views)) == 8
    assert views[0] == View()
    assert {axis for view in views for axis in view.axes} == {2, 3, 4}


def test_a_slice_has_four_views_that_leave_its_depth() -> None:
    assert {view.axes for view in mirrored_views((1, 8, 8))} == {(), (3,), (4,), (3, 4)}


def test_channels_change_places_where_left_and_right_do(plan: Plan) -> None:
    views = mirrored_views(plan.patch, left_right_of(plan, "swap"))
    assert len(views) == 8
    for view in views:
        assert view.label_order == ((0, 2, 1, 3) if 4 in view.axes else ())


def test_the_axis_follows_the_plan(plan: Plan, make_plan: Callable[..., Plan]) -> None:
    turned = make_plan(axis_order=(2, 0, 1), left_right_pairs=PAIRS)
    assert left_right_of(turned, "swap").axis == 0
    assert left_right_of(plan, "swap").axis == 2


def test_off_leaves_the_views_along_x_away(plan: Plan) -> None:
    views = mirrored_views(plan.patch, left_right_of(plan, "off"))
    assert {view.axes for view in views} == {(), (2,), (3,), (2, 3)}


def test_plain_mirrors_like_the_other_axes(plan: Plan) -> None:
    assert mirrored_views(plan.patch, left_right_of(plan, "plain")) == mirrored_views(plan.patch)


def test_the_way_back_undoes_flip_and_order() -> None:
    view = View(axes=(4,), image_order=(0, 2, 1), label_order=(0, 2, 1))
    windows = torch.arange(24.0).view(1, 3, 1, 2, 4)
    assert torch.equal(view.back(view.of(windows)), windows)
    assert view.of(windows)[0, 1, 0, 0].tolist() == [19.0, 18.0, 17.0, 16.0]


def test_channels_of_a_previous_stage_change_places_in_the_image(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(num_channels=2, prior_labels=2, left_right_pairs=PAIRS, left_right="swap")
    assert left_right_of(plan, "swap") == LeftRight(axis=2, image_order=(0, 1, 3, 2), label_order=(0, 2, 1))
