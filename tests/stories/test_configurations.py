"""The configurations by nnU-Net's names: prepared together, trained by name, planned without volumes."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts import cascade, cascade_masks, preprocess_steps
from scripts.crossval_jobs import FoldProcesses
from scripts.fold_data import read_fold
from scripts.preprocess import PreprocessOptions, run
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from scripts.several_datasets import prepare_each
from tests.stories.made_dataset import describe, prepare, times, write_case, write_dataset
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.prepared_folder import list_prepared, read_plan
from utils.storage import read_json, write_json

pytestmark = [pytest.mark.story, pytest.mark.usefixtures("few_draws")]

SMALL = ("--gpu_memory_target", "0.002")  # a patch that covers little of the made cases


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def prepare_all(data: Path, *flags: str) -> tuple[str, ...]:
    """The names of the folders that one command prepares."""
    words = ["--data", str(data), "--results", str(data.parent / "results"), "--task", "7", "--n_jobs", "1"]
    options = parse(PreprocessOptions, [*words, *flags], program="preprocess.py", description="")
    return tuple(folder.name for folder in prepare_each(options, run))


def command(data: Path, *words: str) -> RunOptions:
    place = ["--data", str(data.parent / "results"), "--task", "7", "--nfolds", "3"]
    return read_command([*place, *words], program="main.py", description="").options


# --- prepared ----------------------------------------------------------------------------------------------


@pytest.mark.flag("preprocess:configuration")
def test_one_command_prepares_several_and_reads_the_cases_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = preprocess_steps.survey_cases

    def watch(cases: list, *places: object, **ways: object) -> object:
        read.extend(case.case_id for case in cases)
        return original(cases, *places, **ways)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocess_steps, "survey_cases", watch)
    folders = prepare_all(data, *SMALL, "--configuration", "3d_fullres", "2d", "3d_lowres")
    assert folders == ("007_2d", "007_3d_lowres", "007_3d")
    assert read == ["case_0", "case_1", "case_2"]
    results = data.parent / "results"
    assert [read_plan(results / name).configuration for name in folders] == ["2d", "3d_lowres", "3d_fullres"]
    fingerprints = {(results / name / "fingerprint.json").read_text() for name in folders}
    assert len(fingerprints) == 1
    assert [len(list_prepared(results / name)) for name in folders] == [3, 3, 3]


@pytest.mark.flag("preprocess:configuration")
def test_a_cascade_needs_both_resolutions(data: Path) -> None:
    assert prepare_all(data, *SMALL, "--configuration", "3d_cascade_fullres") == ("007_3d_lowres", "007_3d")


def test_a_low_resolution_without_gain_is_left_out_of_several(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_all(data, "--configuration", "3d_lowres", "2d", "3d_fullres") == ("007_2d", "007_3d")
    assert "3d_lowres is left out. The patch " in capsys.readouterr().err
    assert prepare_all(data, "--configuration", "2d", "3d_cascade_fullres", "--exec_mode", "test") == (
        "test",
        "test",
    )
    with pytest.raises(DatasetError, match="a low resolution would gain nothing"):
        prepare_all(data, "--configuration", "3d_lowres")
    assert sorted(path.name for path in (data.parent / "results").iterdir()) == ["007_2d", "007_3d"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--configuration", "2d", "--dim", "3"], "--configuration 2d and --dim 3 contradict"),
        (["--configuration", "2d", "3d_fullres", "--dim", "2"], "and --dim 2 contradict"),
        (["--configuration", "3d_lowres", "--dim", "2"], "and --dim 2 contradict"),
        (["--configuration", "3d_fullres", "--lowres"], "and --lowres contradict"),
        (["--dim", "2", "--lowres"], "no low-resolution 2-D configuration"),
        (["--configuration", "2d", "3d_fullres", "--patch_size", "8", "8", "8"], "does not fit"),
        (["--configuration", "3d_cascade_fullres", "--resampling", "none"], "there is no low resolution"),
        (["--configuration", "2d", "3d_fullres", "--plan_from", "x"], "the plan of one configuration"),
    ],
)
def test_contradictions_are_refused_before_anything_is_prepared(
    data: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare_all(data, *flags)
    assert not (data.parent / "results").exists()


def test_what_agrees_may_be_said_twice(data: Path) -> None:
    assert prepare_all(data, "--configuration", "2d", "--dim", "2") == ("007_2d",)
    coarse = ["--configuration", "3d_lowres", "--dim", "3", "--lowres"]
    assert prepare_all(data, *SMALL, *coarse) == ("007_3d_lowres",)


@pytest.mark.flag("preprocess:lowres", "preprocess:planner")
def test_a_named_low_resolution_counts_by_its_own_options(data: Path) -> None:
    flags = ["--lowres", "--planner", "resenc_l", "--patch_size", "8", "8", "8"]
    own = prepare(data, *flags)
    assert own.name == "007_3d_lowres_resenc_l"
    before = times(own)
    assert prepare(data, *flags) == own
    assert times(own) == before
    prepare(data)
    assert read_fold(command(data, "--plan", "lowres_resenc_l")).folder == own


@pytest.mark.flag("preprocess:plan_name")
def test_the_name_of_a_plan_is_called_plan_too(data: Path) -> None:
    folder = prepare(data, "--planner", "resenc_m", "--plan", "mine")
    assert read_plan(folder, "mine").planner == "resenc_m"


def test_the_datasets_own_folds_reach_every_configuration(data: Path) -> None:
    names = [f"case_{number}" for number in range(3)]
    folds = [{"train": [n for n in names if n != name], "val": [name]} for name in reversed(names)]
    write_json(data / "Dataset007_Made" / "splits_final.json", folds)
    prepare_all(data, *SMALL, "--configuration", "2d", "3d_cascade_fullres")
    own = prepare(data, "--plan_name", "fine", "--overwrite_target_spacing", "0.5", "1", "1")
    results = data.parent / "results"
    for folder in (*(results / name for name in ("007_2d", "007_3d", "007_3d_lowres")), own):
        assert read_json(folder / "splits_final.json") == folds
    for configuration in ("2d", "3d_fullres", "3d_lowres"):
        held_out = read_fold(command(data, "--configuration", configuration)).validation
        assert [case.case_id for case in held_out] == ["case_2"]


# --- told --------------------------------------------------------------------------------------------------


def test_a_plan_is_told_with_its_memory_and_whether_a_low_resolution_is_missing(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = read_plan(prepare(data))
    said = " ".join(capsys.readouterr().err.split())
    size = f"patch {'x'.join(map(str, plan.patch))}, batch {plan.batch_size}, spacing 1 x 1 x 1 mm"
    assert f"Plan default (3d_fullres): {size}; a training step needs about 0." in said
    assert "low resolution" not in said

    small = read_plan(prepare(data, *SMALL))
    covered = np.prod(small.patch) / np.prod(small.median_shape)
    said = " ".join(capsys.readouterr().err.split())
    assert f"A patch covers {covered:.0%} of the median case, so a low resolution is worthwhile" in said
    assert "--configuration 3d_lowres prepares it" in said

    prepare(data, *SMALL, "--configuration", "3d_lowres")
    prepare(data, *SMALL)
    assert "worthwhile" not in capsys.readouterr().err


# --- planned only ------------------------------------------------------------------------------------------


@pytest.mark.flag("preprocess:plan_only")
def test_a_plan_without_volumes_may_be_edited_and_is_then_prepared(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data, "--plan_only")
    assert not list(folder.glob("*.npy"))
    assert "3 of them are yet to be prepared" in capsys.readouterr().out
    write_json(folder / "plan.json", replace(read_plan(folder), spacing_mm=(2.0, 1.0, 1.0)))
    with pytest.raises(DatasetError, match="no complete case. Run preprocess.py again"):
        read_fold(command(data))
    prepare(data)
    assert list_prepared(folder)[0].footprint.planned_shape == (9, 22, 20)


@pytest.mark.flag("preprocess:plan_only")
def test_planning_alone_never_removes_a_prepared_case(data: Path) -> None:
    folder = prepare(data)
    plan = read_plan(folder)
    with pytest.raises(UserError, match="3 prepared cases of .* do not follow this plan"):
        prepare(data, "--plan_only", "--overwrite_target_spacing", "2", "2", "2")
    assert read_plan(folder) == plan
    assert len(list_prepared(folder)) == 3
    prepare(data, "--plan_only", "--planner", "resenc_m")
    assert read_plan(folder, "resenc_m").planner == "resenc_m"
    write_case(data / "Dataset007_Made", "case_3", 3)
    describe(data / "Dataset007_Made", 4)
    with pytest.raises(UserError, match="--exec_mode test uses the plan that training made"):
        prepare(data, "--plan_only", "--exec_mode", "test")


# --- trained -----------------------------------------------------------------------------------------------


@pytest.mark.flag("configuration")
def test_a_configuration_is_another_way_to_say_dim_and_plan(data: Path) -> None:
    prepare_all(data, *SMALL, "--configuration", "2d", "3d_cascade_fullres")
    results = data.parent / "results"
    for name, folder in (("2d", "007_2d"), ("3d_fullres", "007_3d"), ("3d_lowres", "007_3d_lowres")):
        fold = read_fold(command(data, "--configuration", name))
        assert (fold.plan.configuration, fold.folder) == (name, results / folder)
    write_json(
        results / "007_3d" / "plans" / "cascade.json",
        {"inherits_from": "default", "configuration": "3d_cascade_fullres", "prior_labels": 1},
    )
    assert read_fold(command(data, "--configuration", "3d_cascade_fullres")).plan.prior_labels == 1
    coarse = ["--configuration", "3d_lowres", "--data", str(results / "007_3d_lowres")]
    assert read_fold(command(data, *coarse)).plan.configuration == "3d_lowres"
    assert command(data, "--configuration", "2d").dim == 2
    assert command(data, "--configuration", "3d_lowres").plan == "lowres"
    prepare(data, *SMALL, "--planner", "resenc_m")
    named = read_fold(command(data, "--configuration", "3d_fullres", "--plan", "resenc_m"))
    assert named.plan.planner == "resenc_m"


@pytest.mark.flag("configuration")
@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade_fullres"])
def test_a_cascade_may_be_told_its_configuration(
    data: Path, monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    prepare_all(data, *SMALL, "--configuration", "3d_cascade_fullres")
    stages: list[tuple[str, bool]] = []

    def watch(options: RunOptions, words: Sequence[str], trainer: FoldProcesses) -> Path:  # noqa: ARG001
        stages.append((read_fold(options).plan.configuration, "--configuration" in words))
        return options.results

    monkeypatch.setattr(cascade, "cross_validate", watch)
    monkeypatch.setattr(cascade_masks, "write_priors", lambda *_: None)
    untrained = cascade_masks.FirstStage(options=command(data), models=())
    monkeypatch.setattr(cascade_masks, "open_first_stage", lambda _: untrained)
    words = ["--configuration", configuration, "--results", str(data.parent / "run")]
    words += ["--data", str(data.parent / "results"), "--task", "7", "--nfolds", "3"]
    monkeypatch.setattr(sys, "argv", ["cascade.py", *words])
    cascade.main()
    assert stages == [("3d_lowres", False), ("3d_cascade_fullres", False)]


@pytest.mark.flag("configuration")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--configuration", "2d", "--dim", "3"], "--configuration 2d and --dim 3 contradict"),
        (
            ["--configuration", "3d_fullres", "--dim", "2"],
            "--configuration 3d_fullres and --dim 2 contradict",
        ),
        (["--configuration", "3d_fullres", "--plan", "lowres"], "plan lowres of .* configuration 3d_lowres"),
        (
            ["--configuration", "3d_lowres", "--plan", "default"],
            "plan default of .* configuration 3d_fullres",
        ),
    ],
)
def test_a_configuration_that_dim_or_plan_contradict_is_refused(
    data: Path, words: list[str], message: str
) -> None:
    prepare_all(data, *SMALL, "--configuration", "3d_cascade_fullres")
    with pytest.raises(UserError, match=message):
        read_fold(command(data, *words))
