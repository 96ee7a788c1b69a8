"""`preprocess.py --plan_from`: a dataset prepared as another one was, and fine-tuned from its weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts import train
from scripts.model_run import find_checkpoint
from scripts.run_options import RunOptions
from tests.stories.conftest import Phantom
from tests.stories.made_dataset import describe, prepare, times, write_dataset
from utils.contracts import IntensityStats
from utils.errors import DatasetError, UserError
from utils.prepared_folder import PLAN, list_prepared, read_plan
from utils.run_log import read_log
from utils.storage import read_array, write_json

pytestmark = [pytest.mark.story, pytest.mark.usefixtures("few_draws")]

THEIRS = IntensityStats(mean=50.0, std=20.0, median=50.0, min=0.0, max=200.0, low=0.0, high=120.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


@pytest.fixture
def source(data: Path, tmp_path: Path) -> Path:
    """A prepared folder of a CT dataset with another grid, patch and intensities, and two more labels."""
    plan = read_plan(prepare(data, "--results", str(tmp_path / "for_a_plan")))
    theirs = replace(
        plan,
        dataset="Dataset099_Source",
        spacing_mm=(3.0, 2.0, 2.0),
        patch=(8, 16, 16),
        normalisers=("ct_window",),
        intensity=(THEIRS,),
        channel_names=("CT",),
        label_names=("background", "liver", "spleen", "tumour"),
        num_labels=4,
        stages=tuple(replace(stage, channels=8) for stage in plan.stages[:3]),
    )
    (tmp_path / "099_3d").mkdir()
    write_json(tmp_path / "099_3d" / PLAN, theirs)
    return tmp_path / "099_3d"


@pytest.mark.flag("preprocess:plan_from")
def test_grid_patch_stages_and_normalisation_are_the_sources_and_the_names_our_own(
    data: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data, "--plan_from", str(source))
    plan, theirs = read_plan(folder), read_plan(source)
    for name in ("spacing_mm", "patch", "stages", "normalisers", "uses_mask", "intensity", "batch_size"):
        assert getattr(plan, name) == getattr(theirs, name), name
    assert (plan.dataset, plan.channel_names) == ("Dataset007_Made", ("MR",))
    assert (plan.label_names, plan.num_labels) == (("background", "organ"), 2)
    assert plan.median_shape == (6, 11, 10)
    assert "The channels MR are normalised as CT of Dataset099_Source: ct_window." in capsys.readouterr().err
    case = list_prepared(folder)[0]
    assert case.footprint.planned_shape == (6, 11, 10)
    brightest = read_array(case.image).max()
    np.testing.assert_allclose(brightest, (120 - 50) / 20, rtol=1e-3)


@pytest.mark.flag("preprocess:plan_from")
def test_the_same_source_keeps_the_cases_and_none_plans_anew(data: Path, source: Path) -> None:
    folder = prepare(data, "--plan_from", str(source))
    before = times(folder)
    assert times(prepare(data, "--plan_from", str(source / PLAN))) == before
    prepare(data)
    assert read_plan(folder).spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.flag("preprocess:plan_from")
def test_a_named_plan_from_elsewhere_has_a_folder_beside_the_own_plan(data: Path, source: Path) -> None:
    folder = prepare(data, "--plan_from", str(source), "--plan_name", "pretrained")
    assert folder.name == "007_3d_pretrained"
    assert read_plan(folder).spacing_mm == (3.0, 2.0, 2.0)


def test_another_number_of_channels_is_refused_with_both_named(data: Path, source: Path) -> None:
    plan = read_plan(source)
    two = {name: getattr(plan, name) * 2 for name in ("normalisers", "uses_mask", "intensity")}
    write_json(source / PLAN, replace(plan, num_channels=2, channel_names=("T1", "T2"), **two))
    with pytest.raises(
        DatasetError, match=r"Dataset099_Source has 2 channels \(T1, T2\), but Dataset007_Made"
    ):
        prepare(data, "--plan_from", str(source))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dim", "2"], "is of the configuration 3d_fullres, but 2d is asked for. Use --dim 3"),
        (["--ohe"], "has no foreground channel. Use --no_ohe"),
        (["--patch_size", "8", "8", "8", "--keep_plan"], "--patch_size, --keep_plan: --plan_from takes all"),
        (["--exec_mode", "test"], "Leave --plan_from away"),
    ],
)
def test_what_the_source_decides_cannot_be_given_too(
    data: Path, source: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(data, "--plan_from", str(source), *words)


def test_a_second_stage_and_a_path_without_a_plan_are_refused(data: Path, source: Path) -> None:
    with pytest.raises(DatasetError, match="give a prepared folder, its plan.json or"):
        prepare(data, "--plan_from", str(data / "nothing"))
    write_json(source / PLAN, replace(read_plan(source), prior_labels=2))
    with pytest.raises(DatasetError, match="second stage of a cascade"):
        prepare(data, "--plan_from", str(source))


@pytest.mark.flag("preprocess:plan_from", "ckpt_path")
def test_a_checkpoint_gives_its_plan_and_then_the_weights_that_fit(
    data: Path, phantom: Phantom, trained: Path, run_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    describe(data / "Dataset007_Made", 3, channel=read_plan(phantom.prepared / "500_3d").channel_names[0])
    description = json.loads((data / "Dataset007_Made" / "dataset.json").read_text())
    assert len(description["channel_names"]) == 1
    checkpoint = find_checkpoint(trained)
    folder = prepare(data, "--plan_from", str(checkpoint))
    theirs = read_plan(phantom.prepared / "500_3d")
    assert (read_plan(folder).stages, read_plan(folder).num_classes) == (theirs.stages, 0)
    words = ["--data", str(folder.parent), "--task", "7", "--nfolds", "3", "--max_epochs", "1"]
    train.run(run_options(tmp_path / "tuned", "--ckpt_path", str(checkpoint), *words))
    parameters = next(
        line["data"] for line in read_log(tmp_path / "tuned" / "logs.json") if line["type"] == "LOG"
    )
    start = parameters["warm_start"]
    assert start["missing"] == []
    assert start["num_loaded"] > 20
    assert all("head" in name or "outputs" in name for name in start["other_shape"]), start["other_shape"]
