"""A warm start says where the checkpoint's cases were normalised otherwise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet.training.warm_start import WarmStart
from scripts.other_preparation import preparation_differences, preparation_line, with_preparation
from utils.contracts import IntensityStats, Plan
from utils.storage import to_plain

MakePlan = Callable[..., Plan]
WINDOW = IntensityStats(mean=80.0, std=40.0, median=80.0, min=-200.0, max=300.0, low=-50.0, high=200.0)


def of_ct(make_plan: MakePlan, **changes: Any) -> Plan:
    given: dict[str, Any] = {"normalisers": ("ct_window",), "uses_mask": (False,), "intensity": (WINDOW,)}
    return make_plan(**(given | changes))


def start_of(plan: dict[str, Any]) -> WarmStart:
    return WarmStart(
        checkpoint=Path("first.ckpt"),
        num_loaded=1,
        missing=(),
        other_shape=(),
        unused=(),
        dataset="",
        training_cases=(),
        plan=plan,
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"normalisers": ("z_score",)}, "channel 0: ct_window (-50 to 200, mean 80, deviation 40) there, z_"),
        ({"uses_mask": (True,)}, "here"),
        ({"intensity": (replace(WINDOW, high=240.0),)}, "ct_window (-50 to 240, mean 80, deviation 40) here"),
        ({"spacing_mm": (2.5, 1.0, 0.75)}, "there, 2.5 x 1 x 0.75 here"),
        ({"axis_order": (2, 0, 1)}, "axis order: "),
        ({"preset": "nvidia"}, "steps of the preprocessing: nnunet there, nvidia here"),
    ],
)
def test_what_differs_is_told(make_plan: MakePlan, changed: dict[str, Any], told: str) -> None:
    before = of_ct(make_plan)
    (difference,) = preparation_differences(before, of_ct(make_plan, **changed))
    assert told in difference


def test_numbers_that_no_network_would_notice_and_other_cases_do_not_count(make_plan: MakePlan) -> None:
    close = replace(WINDOW, high=200.1, median=3.0)
    after = of_ct(make_plan, intensity=(close,), dataset="another", patch=(8, 8, 8))
    assert preparation_differences(of_ct(make_plan), after) == ()


def test_the_numbers_of_an_mr_dataset_normalise_nothing(make_plan: MakePlan) -> None:
    before = of_ct(make_plan, normalisers=("z_score",))
    after = replace(before, intensity=(replace(WINDOW, mean=1.0),))
    assert preparation_differences(before, after) == ()


def test_a_start_from_the_plan_in_a_checkpoint_says_it_in_a_line_and_in_the_log(make_plan: MakePlan) -> None:
    stored, plan = to_plain(of_ct(make_plan)), of_ct(make_plan, spacing_mm=(9.0, 9.0, 9.0))
    start = with_preparation(start_of(stored), plan)
    line = preparation_line(start)
    assert line.startswith("The cases of first.ckpt were prepared otherwise: spacing in mm: ")
    assert start.to_log()["prepared_otherwise"] == list(start.prepared_otherwise) != []
    assert preparation_line(with_preparation(start_of(to_plain(plan)), plan)) == ""


def test_a_checkpoint_without_a_plan_says_nothing(make_plan: MakePlan) -> None:
    assert with_preparation(start_of({}), of_ct(make_plan)).prepared_otherwise == ()
