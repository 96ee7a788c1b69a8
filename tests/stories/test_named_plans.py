"""Several plans of one dataset: made, inherited, sharing volumes or not, trained by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from nnunet.training.checkpoint import load_model
from scripts import train
from scripts.fold_data import cases_to_predict, read_fold
from scripts.named_plans import find_plan
from scripts.run_options import RunOptions
from tests.stories.made_dataset import describe, prepare, times, write_case, write_dataset
from utils.errors import DatasetError, UserError
from utils.prepared_folder import list_prepared, plan_names, read_plan
from utils.run_log import read_log
from utils.storage import read_json, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = [pytest.mark.story, pytest.mark.usefixtures("few_draws")]

FINER = ("--overwrite_target_spacing", "0.5", "1", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def run_of(data: Path, plan: str) -> RunOptions:
    return RunOptions(data=data.parent / "results", task="7", plan=plan, nfolds=3)


def write_plan(folder: Path, name: str, **fields: Any) -> None:
    """A plan as a person writes it."""
    write_json(folder / "plans" / f"{name}.json", fields)


# --- made by preprocess.py ---------------------------------------------------------------------------------


@pytest.mark.flag("preprocess:planner", "preprocess:plan_name")
def test_a_residual_planner_adds_a_plan_and_writes_no_volume_again(data: Path) -> None:
    folder = prepare(data)
    before, default = times(folder), read_plan(folder)
    assert prepare(data, "--planner", "nnUNetPlannerResEncM") == folder
    assert times(folder) == before
    assert plan_names(folder) == ("default", "resenc_m")
    assert read_plan(folder) == default
    named = read_plan(folder, "resenc_m")
    assert (named.planner, named.encoder, named.decoder_blocks) == ("resenc_m", "residual", 1)
    assert prepare(data, "--planner", "resenc_l", "--plan_name", "mine") == folder
    assert read_plan(folder, "mine").planner == "resenc_l"


def test_shared_volumes_keep_their_number_type(data: Path) -> None:
    folder = prepare(data, "--dtype", "float32")
    before = times(folder)
    prepare(data, "--planner", "resenc_m")
    assert times(folder) == before


def test_where_there_are_no_volumes_yet_they_are_those_of_the_default_planner(data: Path) -> None:
    folder = prepare(data, "--planner", "resenc_m")
    assert read_plan(folder).planner == "default"
    assert plan_names(folder) == ("default", "resenc_m")
    before = times(folder)
    prepare(data)
    assert times(folder) == before


@pytest.mark.flag("preprocess:plan_name")
def test_a_name_may_be_the_default_one(data: Path) -> None:
    folder = prepare(data, "--planner", "resenc_m", "--plan_name", "default")
    assert read_plan(folder).planner == "resenc_m"
    assert plan_names(folder) == ("default",)


@pytest.mark.flag("preprocess:plan_name", "preprocess:resampling", "preprocess:overwrite_target_spacing")
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--planner", "nnUNetPlannerResEncL_torchres"], "resenc_l_torch"),
        (["--planner", "nnUNetPlannerResEncL_torchres_sepz"], "resenc_l_torch_sepz"),
        (["--planner", "resenc_m", "--resampling", "torch", "--gpu_memory_target", "16"], "resenc_m_torch"),
        (["--planner", "nnUNetPlanner_torchres"], "default_torch"),
        (["--resampling", "torch"], "default_torch"),
        (["--plan_name", "fine", *FINER], "fine"),
    ],
)
def test_another_spacing_or_interpolation_has_volumes_of_its_own(
    data: Path, flags: list[str], name: str
) -> None:
    own = prepare(data, *flags)
    assert own.name == f"007_3d_{name}"
    assert not (own.parent / "007_3d").exists()
    before = times(own)
    assert prepare(data, *flags) == own
    folder = prepare(data)
    assert prepare(data, *flags) == own
    assert times(own) == before
    assert plan_names(folder) == ("default", name)
    assert find_plan(folder, name).folder == own
    assert read_plan(folder, name) == read_plan(own) != read_plan(folder)


@pytest.mark.flag("preprocess:planner", "preprocess:resampling", "preprocess:gpu_memory_target_gb")
def test_resenc_m_by_torch_for_16_gb_stands_beside_resenc_m(data: Path) -> None:
    flags = ["--planner", "resenc_m", "--resampling", "torch", "--gpu_memory_target", "16"]
    own, folder = prepare(data, *flags), prepare(data, "--planner", "resenc_m")
    assert plan_names(folder) == ("default", "resenc_m", "resenc_m_torch")
    torch_one, usual = (find_plan(folder, name) for name in ("resenc_m_torch", "resenc_m"))
    assert (torch_one.folder, usual.folder) == (own, folder)
    assert (torch_one.plan.planner, torch_one.plan.resampling, torch_one.plan.encoder) == (
        "resenc_m",
        "torch",
        "residual",
    )
    assert usual.plan.resampling == "scipy"
    before = times(own)
    assert prepare(data, *flags) == own
    assert times(own) == before


def test_own_volumes_are_trained_and_predicted_by_name_with_or_without_the_default_ones(data: Path) -> None:
    own = prepare(data, "--plan_name", "fine", *FINER)
    with pytest.raises(DatasetError, match="has the plans fine: choose one with --plan"):
        read_fold(run_of(data, "default"))
    for _ in ("alone", "beside the default ones"):
        assert {case.image.parent for case in read_fold(run_of(data, "fine")).training} == {own}
        prepare(data)
    test = prepare(data, "--plan_name", "fine", "--exec_mode", "test")
    assert test == own / "test"
    assert [case.case_id for case in cases_to_predict(run_of(data, "fine"))] == ["unseen"]
    assert max(list_prepared(test)[0].shape) == 36  # 18 slices of 1 mm at half of that


def test_a_rerun_keeps_an_edited_named_plan_until_its_options_change(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data, "--planner", "resenc_m")
    edited = read_json(folder / "plans" / "resenc_m.json") | {"batch_size": 7}
    write_plan(folder, "resenc_m", **edited)
    prepare(data)
    prepare(data, "--planner", "resenc_m")
    assert read_plan(folder, "resenc_m").batch_size == 7
    edited, _ = read_plan(folder, "resenc_m"), capsys.readouterr()
    prepare(data, "--planner", "resenc_m", "--gpu_memory_target", "0.05")
    now = read_plan(folder, "resenc_m")
    assert now.batch_size != 7
    old, new = ("x".join(map(str, plan.patch)) for plan in (edited, now))
    said = " ".join(capsys.readouterr().err.split())
    assert f"resenc_m.json is replaced: patch {old}, batch 7 -> patch {new}, batch {now.batch_size}." in said
    assert "give the new one another --plan_name" in said
    prepare(data, "--planner", "resenc_m", "--gpu_memory_target", "0.05")
    assert "is replaced" not in capsys.readouterr().err


def test_a_plan_that_needs_volumes_of_its_own_after_all_moves_there(data: Path) -> None:
    folder = prepare(data, "--planner", "resenc_m")
    own = prepare(data, "--planner", "resenc_m", *FINER)
    assert not (folder / "plans" / "resenc_m.json").exists()
    assert find_plan(folder, "resenc_m").folder == own


def test_a_plan_never_hides_another_one_of_its_name_with_volumes_of_its_own(data: Path) -> None:
    own = prepare(data, "--plan_name", "mine", *FINER)
    folder, before = prepare(data), times(own)
    with pytest.raises(DatasetError, match=r"a plan mine already, with volumes of its own .* spacing_mm"):
        prepare(data, "--planner", "resenc_m", "--plan_name", "mine")
    assert not (folder / "plans").exists()
    assert times(own) == before
    assert find_plan(folder, "mine").folder == own


def test_the_default_plan_too_says_what_it_replaces(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(data)
    assert "is replaced" not in capsys.readouterr().err
    prepare(data, "--overwrite_target_spacing", "2", "2", "2")
    said = " ".join(capsys.readouterr().err.split())
    assert "007_3d/plan.json is replaced: patch " in said
    assert "spacing_mm" in said.partition("is replaced")[2]


@pytest.mark.flag("preprocess:keep_plan")
def test_a_named_plan_of_a_changed_dataset_waits_for_the_default_one(data: Path) -> None:
    folder = prepare(data)
    write_case(data / "Dataset007_Made", "case_3", 3)
    describe(data / "Dataset007_Made", 4)
    with pytest.raises(DatasetError, match="has changed since .*plan.json was made"):
        prepare(data, "--planner", "resenc_m")
    prepare(data, "--planner", "resenc_m", "--keep_plan")
    assert plan_names(folder) == ("default", "resenc_m")
    assert len(list_prepared(folder)) == 4


@pytest.mark.flag("preprocess:plan_name")
@pytest.mark.parametrize("name", ["lowres", "lowres_fine", "cascade", "../up", "a b", ".hidden"])
def test_a_name_that_no_plan_can_have_is_refused_before_anything_is_read(data: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a plan"):
        prepare(data, f"--plan_name={name}")
    assert not (data.parent / "results").exists()


@pytest.mark.flag("plan")
def test_a_plan_of_such_a_name_is_not_looked_for(data: Path) -> None:
    prepare(data)
    with pytest.raises(UserError, match="'../up' cannot be the name of a plan"):
        read_fold(run_of(data, "../up"))


# --- written by hand ---------------------------------------------------------------------------------------


def test_a_written_plan_has_the_fields_of_the_one_that_it_inherits_from(data: Path) -> None:
    folder = prepare(data, "--planner", "resenc_m")
    write_plan(folder, "wide", inherits_from="resenc_m", batch_size=5)
    write_plan(folder, "wider", inherits_from="wide", patch=[32, 32, 32])
    plan = find_plan(folder, "wider").plan
    assert (plan.planner, plan.batch_size, plan.patch) == ("resenc_m", 5, (32, 32, 32))
    prepare(data)
    assert prepare(data, "--plan_name", "wider") == folder
    assert read_json(folder / "plans" / "wider.json") == {"inherits_from": "wide", "patch": [32, 32, 32]}
    # Even where a plan of this name was made before.
    write_plan(folder, "resenc_m", inherits_from="default", batch_size=6)
    prepare(data, "--plan_name", "resenc_m")
    assert read_plan(folder, "resenc_m").batch_size == 6


def test_a_written_plan_with_another_spacing_is_prepared_by_its_name(data: Path) -> None:
    folder = prepare(data)
    write_plan(folder, "fine", inherits_from="default", spacing_mm=[0.5, 1.0, 1.0])
    with pytest.raises(DatasetError, match="differs .* in spacing_mm. Run preprocess.py --plan_name fine"):
        read_fold(run_of(data, "fine"))
    own = prepare(data, "--plan_name", "fine")
    assert list_prepared(own)[0].footprint.planned_shape == (36, 22, 20)
    assert read_fold(run_of(data, "fine")).folder == own
    # A later edit that needs no other volumes holds at once.
    write_plan(folder, "fine", inherits_from="default", spacing_mm=[0.5, 1.0, 1.0], batch_size=3)
    assert read_fold(run_of(data, "fine")).plan.batch_size == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"inherits_from": "bad"},
            "inherits_from should name a plan above this one, got: bad from bad",
        ),
        ({"inherits_from": 3}, "inherits_from should name a plan above this one, got: bad from 3"),
        ({"inherits_from": "none"}, "has no plan called none; it has: default, bad"),
        ({"inherits_from": "../plan"}, "'../plan' cannot be the name of a plan"),
        ({"inherits_from": "default", "batchsize": 3}, "the plan bad has unknown keys .'batchsize'"),
        ({"inherits_from": "default", "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 3}, "the plan bad lacks the keys"),
    ],
)
def test_a_written_plan_that_makes_no_sense_is_refused(
    data: Path, fields: dict[str, Any], message: str
) -> None:
    folder = prepare(data)
    write_plan(folder, "bad", **fields)
    with pytest.raises(UserError, match=message):
        read_fold(run_of(data, "bad"))


def test_an_unknown_name_is_answered_with_those_that_are_there(data: Path) -> None:
    prepare(data, "--planner", "resenc_m")
    with pytest.raises(DatasetError, match="no plan called resenc_l; it has: default, resenc_m"):
        read_fold(run_of(data, "resenc_l"))


@pytest.mark.flag("plan")
@pytest.mark.parametrize(
    ("name", "command"),
    [("lowres", "preprocess.py --configuration 3d_lowres"), ("cascade", "scripts/cascade.py")],
)
def test_a_stage_of_a_cascade_that_is_missing_is_answered_with_what_makes_it(
    data: Path, name: str, command: str
) -> None:
    folder = prepare(data)
    with pytest.raises(DatasetError, match=rf"no plan called {name}; it has: default. {command} makes one"):
        read_fold(run_of(data, name))
    if name == "cascade":
        write_plan(folder, name, inherits_from="default", prior_labels=1, spacing_mm=[0.5, 1.0, 1.0])
        with pytest.raises(
            DatasetError, match=r"Delete .*plans/cascade.json and run scripts/cascade.py again"
        ):
            read_fold(run_of(data, name))


# --- trained -----------------------------------------------------------------------------------------------


@pytest.mark.flag("plan", "encoder")
def test_a_named_plan_is_trained_with_the_network_that_it_was_planned_for(
    phantom: "Phantom",
    run_options: Callable[..., RunOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(phantom.prepared / "500_3d", tmp_path / "500_3d")
    folder, residual = tmp_path / "500_3d", {"encoder": "residual", "decoder_blocks": 1}
    # Larger than the volumes that were padded for plan.json: the loader pads what is missing.
    write_plan(folder, "resenc", inherits_from="default", patch=[16, 40, 40], **residual)
    assert min(case.shape[1] for case in list_prepared(folder)) < 40
    flags = [
        "--data",
        str(tmp_path),
        "--fit_classifier",
        "none",
        "--max_epochs",
        "1",
        "--steps_per_epoch",
        "1",
    ]
    best = train.run(run_options(tmp_path / "named", *flags, "--plan", "resenc"))
    model = load_model(best, torch.device("cpu"))
    assert (model.architecture.encoder, model.plan.patch) == ("residual", (16, 40, 40))
    assert "encoder residual (plan)" in " ".join(capsys.readouterr().err.split())
    options = next(line["data"] for line in read_log(tmp_path / "named" / "logs.json") if "data" in line)
    assert options["resolved"]["encoder"] == {"value": "residual", "source": "plan"}


def test_who_names_no_plan_is_told_of_the_others(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(data, "--planner", "resenc_m")
    train.fold_of(run_of(data, "default"))
    assert "plan.json; --plan chooses another one: resenc_m." in " ".join(capsys.readouterr().err.split())
    train.fold_of(run_of(data, "resenc_m"))
    assert "--plan chooses" not in capsys.readouterr().err


# --- checked -----------------------------------------------------------------------------------------------


@pytest.mark.flag("preprocess:verify_dataset_integrity")
def test_to_verify_reads_what_size_and_time_call_unchanged(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data)
    before, image = times(folder), data / "Dataset007_Made" / "imagesTr" / "case_1_0000.nii.gz"
    status, content = image.stat(), bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    image.write_bytes(bytes(content))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    prepare(data)
    assert times(folder) == before
    with pytest.raises(DatasetError, match="1 errors"):
        prepare(data, "--verify_dataset_integrity")
    write_case(data / "Dataset007_Made", "case_1", 1)
    prepare(data, "--verify_dataset_integrity")
    assert "Read and checked all 4 cases" in capsys.readouterr().err


@pytest.mark.flag("preprocess:verify_dataset_integrity")
def test_to_verify_reads_test_cases_too(data: Path) -> None:
    image = data / "Dataset007_Made" / "imagesTs" / "unseen_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-200])
    prepare(data)
    with pytest.raises(DatasetError, match="1 errors"):
        prepare(data, "--verify_dataset_integrity")


# --- of another dataset ------------------------------------------------------------------------------------


OTHERS: dict[str, Any] = {"dataset": "Dataset999_Other", "label_names": ["background", "liver"]}


def test_a_plan_of_another_dataset_is_refused_in_one_error_that_names_its_file(data: Path) -> None:
    folder = prepare(data)
    write_plan(folder, "foreign", **read_json(folder / "plan.json") | OTHERS)
    message = (
        r"plans/foreign.json is no plan of this dataset: dataset Dataset999_Other \(here Dataset007_Made\); "
        r"label_names background, liver \(here background, organ\)\. .* --plan_from .*plans/foreign.json"
    )
    with pytest.raises(DatasetError, match=message):
        read_fold(run_of(data, "foreign"))
    with pytest.raises(DatasetError, match=message):
        prepare(data, "--plan_name", "foreign")
    # What the message says.
    prepare(data, "--plan_from", str(folder / "plans" / "foreign.json"), "--plan_name", "moved")
    assert read_fold(run_of(data, "moved")).plan.label_names == ("background", "organ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "Dataset999_Other"}, "dataset Dataset999_Other"),
        (
            {"label_names": ["background", "organ", "tumour"], "num_labels": 3},
            "label_names background, organ, t",
        ),
        ({"class_names": ["a", "b"], "num_classes": 2}, r"class_names a, b \(here none\)"),
        (
            {"regions": [[1]], "region_names": ["all"], "regions_class_order": [1]},
            r"regions \(1,\) \(here none",
        ),
        ({"channel_names": ["CT"]}, r"channel_names CT \(here MR\)"),
        ({"ignore_label": 2}, r"ignore_label 2 \(here None\)"),
    ],
)
@pytest.mark.parametrize("place", ["plan", "named", "heir"])
def test_whatever_another_dataset_has_is_refused_in_every_plan(
    data: Path, fields: dict[str, Any], message: str, place: str
) -> None:
    folder = prepare(data)
    whole = read_json(folder / "plan.json") | fields
    if place == "plan":
        write_json(folder / "plan.json", whole)
    else:
        write_plan(folder, "named", **whole)
        write_plan(folder, "heir", inherits_from="named", batch_size=3)
    with pytest.raises(DatasetError, match=rf"{place}.json is no plan of this dataset: .*{message}"):
        find_plan(folder, "default" if place == "plan" else place)


def test_a_kept_plan_of_another_dataset_prepares_nothing(data: Path) -> None:
    folder = prepare(data)
    write_json(folder / "plan.json", read_json(folder / "plan.json") | OTHERS)
    with pytest.raises(DatasetError, match="plan.json is no plan of this dataset: dataset Dataset999_Other"):
        prepare(data, "--keep_plan")
    with pytest.raises(DatasetError, match="plan.json is no plan of this dataset: dataset Dataset999_Other"):
        prepare(data, "--exec_mode", "test")
