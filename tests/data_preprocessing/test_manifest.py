"""What a rerun redoes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_preprocessing.manifest import (
    FORMAT_VERSION,
    Manifest,
    current_inputs,
    describe_inputs,
    outdated_cases,
    planner_hash,
    read_manifest,
    refuse_changed,
    rules_hash,
    start_manifest,
)
from data_preprocessing.planners import PlannerOptions
from utils.contracts import IntensityStats, Plan, RawCase, Stage
from utils.errors import DatasetError

STATS = IntensityStats(mean=10.0, std=5.0, median=10.0, min=0.0, max=20.0, low=0.0, high=20.0)
PLAN = Plan(
    dataset="made",
    configuration="3d_fullres",
    axis_order=(0, 1, 2),
    median_shape=(4, 5, 6),
    spacing_mm=(1.0, 1.0, 1.0),
    patch=(2, 2, 2),
    batch_size=2,
    stages=(Stage(channels=8, kernel=(3, 3, 3), stride=(1, 1, 1)),),
    normalisers=("z_score",),
    uses_mask=(False,),
    intensity=(STATS,),
    channel_names=("MR",),
    label_names=("background", "organ"),
    class_names=(),
    num_channels=1,
    num_labels=2,
    num_classes=0,
)


def raw_case(folder: Path, name: str) -> RawCase:
    (folder / name).write_text(name)
    return RawCase(case_id=name, patient_id=name, images=(folder / name,))


def manifest_of(*cases: RawCase) -> Manifest:
    inputs = tuple(describe_inputs(case) for case in cases)
    return Manifest(
        version=FORMAT_VERSION, mode="training", dtype="float16", rules="r", planner="p", cases=inputs
    )


def finish(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}_x.npy").touch()
        (folder / f"{name}.json").touch()


@pytest.fixture
def cases(tmp_path: Path) -> tuple[RawCase, RawCase]:
    return raw_case(tmp_path, "a"), raw_case(tmp_path, "b")


def test_a_finished_folder_needs_nothing(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    assert outdated_cases(tmp_path, manifest_of(*cases), manifest_of(*cases)) == ()


def test_a_half_written_case_is_redone(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    (tmp_path / "b.json").unlink()
    assert outdated_cases(tmp_path, manifest_of(*cases), manifest_of(*cases)) == ("b",)


def test_an_edited_file_is_redone(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    before = manifest_of(*cases)
    cases[0].images[0].write_text("other")
    assert set(current_inputs(before, cases)) == {"b"}
    assert outdated_cases(tmp_path, before, manifest_of(*cases)) == ("a",)


def test_a_file_that_was_only_touched_is_kept(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    before = manifest_of(*cases)
    os.utime(cases[0].images[0], ns=(1, 1))
    assert set(current_inputs(before, cases)) == {"a", "b"}
    assert outdated_cases(tmp_path, before, manifest_of(*cases)) == ()


def test_a_new_class_is_a_change(cases: tuple) -> None:
    moved = (replace(cases[0], class_target=1), cases[1])
    assert set(current_inputs(manifest_of(*cases), moved)) == {"b"}


def test_other_rules_redo_everything(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    after = replace(manifest_of(*cases), rules="other")
    assert outdated_cases(tmp_path, manifest_of(*cases), after) == ("a", "b")


def test_a_vanished_case_and_leftovers_are_deleted(tmp_path: Path, cases: tuple) -> None:
    finish(tmp_path, "a", "b")
    (tmp_path / ".b_x.npy.123.tmp").touch()
    start_manifest(tmp_path, manifest_of(cases[0]), ())
    assert not (tmp_path / "b.json").exists()
    assert not (tmp_path / "b_x.npy").exists()
    assert (tmp_path / "a.json").exists()
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_manifest_survives_the_disk_and_a_foreign_one_does_not_count(tmp_path: Path, cases: tuple) -> None:
    start_manifest(tmp_path, manifest_of(*cases), ())
    assert read_manifest(tmp_path) == manifest_of(*cases)
    (tmp_path / "manifest.json").write_text("{}")
    assert read_manifest(tmp_path) is None


def test_a_file_that_changes_between_check_and_use_stops_its_case(cases: tuple) -> None:
    inputs = describe_inputs(cases[0])
    cases[0].images[0].write_text("longer than before")
    with pytest.raises(DatasetError, match="changed while"):
        refuse_changed(inputs)


def test_dataset_statistics_matter_to_ct_only() -> None:
    other = (replace(STATS, mean=11.0),)
    assert rules_hash(PLAN, mode="training") == rules_hash(replace(PLAN, intensity=other), mode="training")
    ct = replace(PLAN, normalisers=("ct_window",))
    assert rules_hash(ct, mode="training") != rules_hash(replace(ct, intensity=other), mode="training")


def test_the_patch_matters_where_volumes_are_padded_to_it() -> None:
    larger = replace(PLAN, patch=(4, 4, 4))
    assert rules_hash(PLAN, mode="training") != rules_hash(larger, mode="training")
    assert rules_hash(PLAN, mode="val") == rules_hash(larger, mode="val")


def hashed(**options: Any) -> str:
    return planner_hash(PlannerOptions(**options), configuration="2d", foreground_channel=False)


def test_every_planner_option_asks_for_a_new_plan() -> None:
    options = ({}, {"preset": "nvidia"}, {"depth": 3}, {"planner": "resenc_m"}, {"resampling": "torch"})
    assert len({hashed(**changes) for changes in options}) == 5


def test_another_spelling_of_the_same_options_does_not() -> None:
    assert hashed(gpu_memory_target_gb=8.0, planner="ExperimentPlanner", resampling="scipy") == hashed()
    assert hashed(planner="nnUNetPlannerResEncL", gpu_memory_target_gb=24.0) == hashed(planner="resenc_l")
    assert hashed(planner="nnUNetPlanner_torchres") == hashed(resampling="torch")


def test_plans_and_cases_of_programs_without_named_planners_stay_valid() -> None:
    # Both as such a program wrote them.
    assert hashed() == "db88ca86320fe2f26179794fef1cf6b31d4ca5ea6be0a05a2e19b62ca7b6b2bc"
    assert (
        rules_hash(PLAN, mode="training")
        == "761d04213e07af219ed63c667231f7736138e65d0812f740eb0e356e023f27a5"
    )


def test_another_way_to_resample_redoes_every_case() -> None:
    torch = replace(PLAN, resampling="torch")
    assert rules_hash(PLAN, mode="training") != rules_hash(torch, mode="training")
