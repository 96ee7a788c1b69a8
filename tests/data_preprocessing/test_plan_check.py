"""A plan that a person edited is read back and checked field by field."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_preprocessing.plan_check import validate_plan
from utils.contracts import IntensityStats, Plan, Stage
from utils.errors import DatasetError
from utils.storage import read_json, read_record, write_json


def good_plan() -> Plan:
    stages = (
        Stage(channels=32, kernel=(1, 3, 3), stride=(1, 1, 1)),
        Stage(channels=64, kernel=(3, 3, 3), stride=(1, 2, 2)),
        Stage(channels=128, kernel=(3, 3, 3), stride=(2, 2, 2)),
    )
    return Plan(
        dataset="Toy",
        configuration="3d_fullres",
        axis_order=(2, 0, 1),
        median_shape=(16, 40, 40),
        spacing_mm=(3.0, 1.0, 1.0),
        patch=(16, 32, 32),
        batch_size=2,
        stages=stages,
        normalisers=("ct_window",),
        uses_mask=(False,),
        intensity=(IntensityStats(mean=0.0, std=1.0, median=0.0, min=-3.0, max=3.0, low=-2.0, high=2.0),),
        channel_names=("CT",),
        label_names=("background", "organ"),
        class_names=("benign", "malignant"),
        num_channels=1,
        num_labels=2,
        num_classes=2,
    )


def test_a_plan_survives_an_edit_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, good_plan())
    edited = read_json(path)
    edited["batch_size"] = 7
    write_json(path, edited)
    plan = read_record(Plan, path)
    validate_plan(plan)
    assert plan == replace(good_plan(), batch_size=7)


def test_a_plan_of_an_older_program_is_of_the_default_planner(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, good_plan())
    older = read_json(path)
    for name in ("planner", "encoder", "decoder_blocks", "resampling"):
        del older[name]
    write_json(path, older)
    plan = read_record(Plan, path)
    assert plan == replace(
        good_plan(), planner="default", encoder="plain", decoder_blocks=2, resampling="scipy"
    )


def with_stage(level: int, **changes: Any) -> Plan:
    stages = list(good_plan().stages)
    stages[level] = replace(stages[level], **changes)
    return replace(good_plan(), stages=tuple(stages))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(good_plan(), axis_order=(0, 0, 1)), r"axis_order is \(0, 0, 1\)"),
        (replace(good_plan(), spacing_mm=(1.0, -1.0, 1.0)), r"spacing_mm is \(1.0, -1.0, 1.0\)"),
        (replace(good_plan(), spacing_mm=(float("nan"), 1.0, 1.0)), "spacing_mm is"),
        (replace(good_plan(), median_shape=(0, 4, 4)), r"median_shape is \(0, 4, 4\)"),
        (replace(good_plan(), patch=(16, 30, 32)), r"patch is \(16, 30, 32\); .* a multiple of \(2, 4, 4\)"),
        (replace(good_plan(), patch=(1, 32, 32)), "patch is .* but configuration is '3d_fullres'"),
        (replace(good_plan(), configuration="2d"), "patch is .* but configuration is '2d'"),
        (replace(good_plan(), batch_size=0), "batch_size is 0"),
        (replace(good_plan(), stages=good_plan().stages[:1]), "stages has 1 entries"),
        (with_stage(0, stride=(1, 2, 2)), r"stages\[0\].stride is \(1, 2, 2\)"),
        (with_stage(1, stride=(0, 2, 2)), r"stages\[1\].stride is \(0, 2, 2\)"),
        (with_stage(1, kernel=(2, 3, 3)), r"stages\[1\].kernel is \(2, 3, 3\); every edge must be odd"),
        (replace(good_plan(), decoder_blocks=0), "decoder_blocks is 0"),
        (
            replace(good_plan(), resampling="cubic"),
            r"resampling is 'cubic'; choose one of \['scipy', 'torch'",
        ),
        (with_stage(2, channels=0), r"stages\[2\] has channels 0"),
        (replace(good_plan(), patch=(1, 32, 32), configuration="2d"), "set the first number of both to 1"),
        (replace(good_plan(), normalisers=("ct_window", "z_score")), "normalisers has 2 entries"),
        (replace(good_plan(), uses_mask=()), "uses_mask has 0 entries"),
        (replace(good_plan(), preset="fast"), "preset is 'fast'"),
        (replace(good_plan(), num_labels=5), "label_names has 2 entries but num_labels is 5"),
        (replace(good_plan(), num_labels=1), "num_labels is 1"),
        (replace(good_plan(), ignore_label=1), "ignore_label is 1"),
        (replace(good_plan(), num_classes=3), "class_names has 2 entries but num_classes is 3"),
        (replace(good_plan(), regions=((1, 2),)), r"regions holds \(1, 2\)"),
        (replace(good_plan(), regions=((1,),)), "region_names has 0 entries for 1 regions"),
        (replace(good_plan(), regions_class_order=(2,)), r"regions_class_order holds \[2\].* from 1 to 1"),
    ],
)
def test_an_edit_that_contradicts_the_rest_is_named(plan: Plan, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        validate_plan(plan)


def test_all_contradictions_are_listed_at_once() -> None:
    with pytest.raises(DatasetError, match=r"(?s)batch_size is 0.*num_classes is 3"):
        validate_plan(replace(good_plan(), batch_size=0, num_classes=3))
