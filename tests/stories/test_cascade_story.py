"""A cascade of two folds from one command to the masks of raw scans."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from data_preprocessing.volume_io import read_label_volume
from scripts import best_configuration, cascade, crossval, inference, preprocess, train
from scripts.best_candidates import read_candidate
from scripts.best_configuration import BestOptions, prediction_command
from scripts.cascade_masks import open_first_stage, refuse_other_first_stage
from scripts.crossval_words import words_for_folds
from scripts.fold_data import read_fold
from scripts.prepared_prediction import network_input
from scripts.previous_stage import find_previous_stage
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from tests.stories.conftest import FEW_CHANNELS
from tests.stories.test_crossval_story import InHouse
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.prepared_folder import PLAN, PRIOR, case_file, list_prepared, read_plan
from utils.storage import read_array, read_json, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story
TASK = "500"
PATCH = ("8", "16", "16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished cascade."""

    data: Path
    results: Path
    words: tuple[str, ...]

    def options(self, *flags: str) -> RunOptions:
        return read_command([*self.words, *flags], program="main.py", description="").options


def prepare(raw: Path, data: Path, *flags: str) -> Path:
    words = ["--data", str(raw.parent), "--results", str(data), "--task", TASK, "--n_jobs", "1"]
    words += ["--patch_size", *PATCH, *flags]
    folder = preprocess.run(
        parse(preprocess.PreprocessOptions, words, program="preprocess.py", description="")
    )
    plan = read_plan(folder)
    stages = tuple(replace(stage, channels=FEW_CHANNELS) for stage in plan.stages)
    write_json(folder / PLAN, replace(plan, stages=stages, batch_size=2))
    (folder / "splits_final.json").unlink()  # the official fold holds out no training case
    return folder


def run(words: Sequence[str], results: Path) -> InHouse:
    """What the command does, in this process."""
    trainer = InHouse()
    command = read_command([*words, "--results", str(results)], program="cascade.py", description="")
    cascade.run(command.options, words_for_folds(list(words)), trainer)
    return trainer


@pytest.fixture(scope="module")
def trained(phantom: "Phantom", tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("cascade")
    data, results = root / "prepared", root / "results"
    prepare(phantom.raw, data)
    words = ("--data", str(data), "--task", TASK, "--nfolds", "2", "--device", "cpu", "--epochs", "1")
    words += ("--steps_per_epoch", "2", "--num_workers", "1", "--overlap", "0", "--fit_classifier", "none")
    with pytest.raises(DatasetError, match="no fold holds out"):
        run(words, results)  # the low resolution is prepared, with the dataset's own folds
    assert (data / f"{TASK}_3d_lowres" / PLAN).is_file()
    prepare(phantom.raw, data, "--lowres")
    trainer = run(words, results)
    assert [(job.fold, job.folder.parent.name) for job in trainer.jobs] == [
        (0, "lowres"),
        (1, "lowres"),
        (0, "cascade"),
        (1, "cascade"),
    ]
    return Trained(data=data, results=results, words=words)


def test_every_case_is_seen_by_the_second_stage_as_the_first_held_it_out(trained: Trained) -> None:
    base = trained.data / f"{TASK}_3d"
    cases = list_prepared(base)
    for case in cases:
        prior = read_array(case_file(base, case.case_id, PRIOR))
        assert (prior.shape, prior.dtype) == ((1, *case.shape), np.dtype(np.int16))
        assert set(np.unique(prior)) <= {0, 1, 2}
    options = trained.options("--plan", "cascade", "--results", str(trained.results / "cascade"))
    plan = read_fold(options).plan
    assert (plan.prior_labels, plan.configuration) == (2, "3d_cascade_fullres")
    assert network_input(cases[0], plan).shape == (3, *cases[0].shape)
    content = torch.load(
        trained.results / "cascade" / "fold_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    first = next(value for value in content["state_dict"].values() if value.ndim == 5)
    assert first.shape[1] == 3  # the image, and one channel per label of the previous stage


def test_a_second_call_trains_and_predicts_nothing_again(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("scripts.cascade_masks.prior_label", never)
    assert run(trained.words, trained.results).jobs == []


@pytest.mark.flag("previous_stage")
def test_raw_scans_pass_through_both_stages(trained: Trained, phantom: "Phantom", tmp_path: Path) -> None:
    scans = phantom.raw / "test"
    results = trained.results / "cascade"

    def masks(output: str, *flags: str) -> list[np.ndarray]:
        words = ("--results", str(results), "-i", str(scans), "-o", str(tmp_path / output), *flags)
        inference.run(trained.options("--exec_mode", "predict", *words))
        return [read_label_volume(path).voxels for path in sorted((tmp_path / output).glob("*.nii.gz"))]

    found = masks("noted")
    assert len(found) == 2
    named = masks("named", "--previous_stage", str(trained.results / "lowres"))
    assert all(np.array_equal(one, other) for one, other in zip(found, named, strict=True))
    one_fold = masks("one", "--previous_stage", str(trained.results / "lowres" / "fold_1"))
    assert not all(np.array_equal(one, other) for one, other in zip(found, one_fold, strict=True))


def test_the_best_of_all_stages_and_their_pairs_is_found_and_predicts(
    trained: Trained, phantom: "Phantom", tmp_path: Path
) -> None:
    """No fold kept its probabilities, so each pair computes them on what its models see."""
    names = ("full", "cascade", "lowres")
    words = [*trained.words, "--results", str(trained.results / "full")]
    full = read_command(words, program="crossval.py", description="").options
    crossval.run(full, words_for_folds(words), InHouse())
    results = tuple(trained.results / name for name in names)
    best = BestOptions(results=results, output=tmp_path / "best", device="cpu")
    assert len(read_json(best_configuration.run(best))["all_results"]) == 6
    first, second, _ = (read_candidate(path, None, (), "cpu") for path in results)
    pair = replace(first, results=(*first.results, *second.results))
    command = prediction_command(pair, results[0] / "postprocessing.json", ())
    words = shlex.split(command.replace("INPUT", str(phantom.raw / "test")))[2:-1]
    words += [str(tmp_path / "out"), "--device", "cpu"]
    inference.run(read_command(words, program="main.py", description="").options)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_what_cannot_be_a_previous_stage_is_refused(
    trained: Trained, phantom: "Phantom", tmp_path: Path
) -> None:
    scans = ("--exec_mode", "predict", "-i", str(phantom.raw / "test"), "-o", str(tmp_path / "o"))
    lowres = trained.options(*scans, "--results", str(trained.results / "lowres" / "fold_0"))
    with pytest.raises(UserError, match="there is none among these models"):
        inference.run(replace(lowres, previous_stage=trained.results / "lowres"))
    moved = Path(shutil.copytree(trained.results / "cascade" / "fold_0", tmp_path / "moved"))
    with pytest.raises(UserError, match="does not name the first"):
        inference.run(trained.options(*scans, "--results", str(moved)))


def test_a_fold_answers_held_out_scans_with_the_first_stage_of_that_fold(
    trained: Trained, phantom: "Phantom", tmp_path: Path
) -> None:
    from scripts.members import find_members
    from scripts.previous_stage import open_stages

    words = ("--results", str(trained.results / "cascade"), "--folds", "1", "-i", str(phantom.raw))
    options = trained.options("--exec_mode", "predict", *words)
    stages = open_stages(options)
    assert stages.previous is not None
    assert [member.results.name for member in stages.previous.members] == ["fold_1"]
    assert find_previous_stage(options, find_members(options)) == (trained.results / "lowres").resolve()


def test_the_folds_have_to_hold_out_every_case(phantom: "Phantom", trained: Trained, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    for folder in (data / f"{TASK}_3d", data / f"{TASK}_3d_lowres"):
        write_json(folder / "splits_final.json", read_json(phantom.raw / "splits_final.json"))
    words = [word if word != str(trained.data) else str(data) for word in trained.words]
    with pytest.raises(DatasetError, match="no fold holds out"):
        run(words, tmp_path / "results")


def test_a_missing_mask_says_what_to_run(trained: Trained, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    case = list_prepared(data / f"{TASK}_3d")[0]
    case_file(data / f"{TASK}_3d", case.case_id, PRIOR).unlink()
    words = [word if word != str(trained.data) else str(data) for word in trained.words]
    words += ["--plan", "cascade", "--results", str(tmp_path / "results")]
    with pytest.raises(DatasetError, match="_prior.npy"):
        train.run(read_command(words, program="main.py", description="").options)


def elsewhere(trained: Trained, data: Path, *flags: str) -> list[str]:
    return [word if word != str(trained.data) else str(data) for word in trained.words] + list(flags)


def test_full_resolution_may_have_volumes_of_its_own(
    trained: Trained, phantom: "Phantom", tmp_path: Path
) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    prepare(phantom.raw, data, "--plan_name", "thin", "--overwrite_target_spacing", "5", "2", "2")
    shutil.copytree(trained.results / "lowres", tmp_path / "results" / "lowres")
    words = elsewhere(trained, data, "--plan", "thin", "--folds", "0")
    (job,) = run(words, tmp_path / "results").jobs
    thin = data / f"{TASK}_3d_thin"
    options = read_command(job.words, program="main.py", description="").options
    assert (options.data, options.plan) == (thin, "cascade")
    assert read_plan(thin, "cascade").spacing_mm == (5.0, 2.0, 2.0)
    case = list_prepared(thin)[0]
    assert read_array(case_file(thin, case.case_id, PRIOR)).shape == (1, *case.shape)
    words = elsewhere(trained, data, "--exec_mode", "predict", "--results", str(job.folder.parent))
    words += ["-i", str(phantom.raw / "test"), "-o", str(tmp_path / "o")]
    inference.run(read_command(words, program="main.py", description="").options)
    assert len(list((tmp_path / "o").glob("*.nii.gz"))) == 2


@pytest.mark.flag("plan")
def test_a_cascade_of_another_plan_is_not_taken_for_the_first(trained: Trained, tmp_path: Path) -> None:
    write_json(trained.data / f"{TASK}_3d" / "plans" / "other.json", {"inherits_from": "default"})
    with pytest.raises(DatasetError, match="inherits from the plan default, not from other"):
        run([*trained.words, "--plan", "other"], tmp_path)
    with pytest.raises(UserError, match="is one stage of a cascade"):
        run([*trained.words, "--plan", "cascade"], tmp_path)


def test_masks_of_another_cascade_are_refused_with_the_command_that_makes_them_anew(
    trained: Trained, tmp_path: Path
) -> None:
    base, results = trained.data / f"{TASK}_3d", trained.results / "cascade"
    mine = read_json(base / "priors.json")
    write_json(base / "priors.json", {"networks": ["0" * 64, "1" * 64]})
    flags = ("--plan", "cascade", "--results", str(results / "fold_0"))
    prepared = ("--exec_mode", "predict", "-o", str(tmp_path), "--folds", "0", "--plan", "cascade")
    for start in (
        lambda: train.run(trained.options(*flags, "--resume_training", "--epochs", "2")),
        lambda: inference.evaluate(trained.options(*flags)),
        lambda: inference.run(trained.options(*prepared, "--results", str(results))),
    ):
        with pytest.raises(DatasetError, match="of other networks") as error:
            start()
    command = shlex.split(str(error.value).partition("anew run: ")[2])
    assert command[:2] == ["python", "scripts/cascade.py"]
    options = read_command(command[2:], program="cascade.py", description="").options
    assert (options.results, options.folds) == (trained.results, (0, 1))
    trainer = InHouse()
    cascade.run(options, words_for_folds(command[2:]), trainer)
    assert trainer.jobs == []
    assert read_json(base / "priors.json") == mine
    inference.run(trained.options(*prepared, "--results", str(results)))


def test_a_first_stage_that_does_not_fit_any_more_is_refused(trained: Trained, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    low = data / f"{TASK}_3d_lowres"
    write_json(low / PLAN, replace(read_plan(low), spacing_mm=(9.0, 9.0, 9.0)))
    words = elsewhere(trained, data, "--plan", "lowres", "--results", str(trained.results / "lowres"))
    with pytest.raises(DatasetError, match="prepared with another spacing_mm"):
        open_first_stage(read_command(words, program="main.py", description="").options)
    with pytest.raises(DatasetError, match="masks of other networks"):
        refuse_other_first_stage(trained.results / "cascade", ["0" * 64])
    refuse_other_first_stage(trained.results / "lowres", ["0" * 64])


def test_a_low_resolution_that_cannot_be_prepared_here_is_told_with_the_command(
    trained: Trained, tmp_path: Path
) -> None:
    base = tmp_path / "data" / f"{TASK}_3d"
    shutil.copytree(trained.data / f"{TASK}_3d", base)
    words = elsewhere(trained, tmp_path / "data")
    manifest, dataset = read_json(base / "manifest.json"), read_json(base / "dataset.json")
    write_json(base / "manifest.json", manifest | {"planner": "0" * 64})
    with pytest.raises(DatasetError, match=r"not noted in it.* Run: python preprocess\.py .* --lowres"):
        run(words, tmp_path / "results")
    write_json(base / "dataset.json", dataset | {"root": str(tmp_path / "gone" / "Dataset500_Gone")})
    with pytest.raises(DatasetError, match="--data RAW .* --task Dataset500_Gone --dim 3 --lowres"):
        run(words, tmp_path / "results")


def test_both_stages_need_the_same_folds(trained: Trained, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    folds = read_json(trained.results / "lowres" / "splits_final.json")
    write_json(data / f"{TASK}_3d" / "splits_final.json", folds[::-1])
    with pytest.raises(DatasetError, match="have different folds"):
        run(elsewhere(trained, data), tmp_path / "results")


@pytest.mark.flag("configuration")
@pytest.mark.parametrize("flags", [(), ("--configuration", "3d_cascade_fullres")])
def test_results_without_a_name_lie_below_those_of_the_dataset(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    found: list[RunOptions] = []
    monkeypatch.setattr(cascade, "run", lambda options, words, trainer: found.append(options))
    monkeypatch.setattr("sys.argv", ["cascade.py", *trained.words, *flags])
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    cascade.main()
    assert (found[0].plan, found[0].configuration) == ("default", None)
    assert found[0].results == tmp_path / "Dataset500_PancreasPhantom" / "default__3d_fullres"
