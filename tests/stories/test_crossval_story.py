"""A cross-validation of two folds: interrupted, gone on with, scored, predicted with, compared."""

import csv
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from data_preprocessing.volume_io import read_label_volume, write_volume
from scripts import best_configuration, crossval, inference, train
from scripts.best_configuration import BestOptions
from scripts.crossval_jobs import FoldJob
from scripts.fold_data import read_fold
from scripts.members import find_members
from scripts.prepared_prediction import native_reference
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.errors import DatasetError, EnvironmentFault, UserError
from utils.run_log import read_log
from utils.storage import read_json, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

TASK = "500"


@dataclass(frozen=True, slots=True, kw_only=True)
class InHouse:
    """Trains folds in this process; those of `broken` die before their last validation."""

    broken: tuple[int, ...] = ()
    jobs: list[FoldJob] = field(default_factory=list)

    def train(self, job: FoldJob, devices: str | None) -> int:
        assert devices is None
        self.jobs.append(job)
        options = read_command(job.words, program="main.py", description="").options
        with pytest.MonkeyPatch.context() as patch:
            if job.fold in self.broken:
                patch.setattr(train, "_finish", _die)
            try:
                train.run(options)
            except KeyError:
                return 1
        return 0

    def stop(self) -> None:
        """Nothing runs beside this process."""


def _die(*_: object) -> None:
    raise KeyError


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoFolds:
    """A dataset without folds of its own, two cross-validations of it, and how they were trained."""

    data: Path
    volumes: Path
    slices: Path
    jobs: tuple[tuple[FoldJob, ...], ...]  # of each of the two calls
    failure: str


def words_of(data: Path, *flags: str) -> list[str]:
    words = ["--data", str(data), "--task", TASK, "--nfolds", "2", "--device", "cpu", "--epochs", "1"]
    words += ["--steps_per_epoch", "2", "--num_workers", "1", "--overlap", "0", "--fit_classifier", "none"]
    return [*words, *flags]


def run_crossval(words: Sequence[str], results: Path, trainer: InHouse) -> Path:
    command = read_command([*words, "--results", str(results)], program="crossval.py", description="")
    return crossval.run(command.options, crossval.words_for_folds(list(words)), trainer)


@pytest.fixture(scope="module")
def two_folds(phantom: "Phantom", tmp_path_factory: pytest.TempPathFactory) -> TwoFolds:
    root = tmp_path_factory.mktemp("crossval")
    data = root / "prepared"
    for dim in (2, 3):
        shutil.copytree(phantom.prepared / f"{TASK}_{dim}d", data / f"{TASK}_{dim}d")
        (data / f"{TASK}_{dim}d" / "splits_final.json").unlink()
    volumes, slices = root / "volumes", root / "slices"
    first, second = InHouse(broken=(0,)), InHouse()
    words = words_of(data, "--npz")
    with pytest.raises(crossval.FailedFoldsError) as failure:
        run_crossval(words, volumes, first)
    assert failure.value.exit_status == 1
    assert not (volumes / "final_metrics.json").exists()
    run_crossval(words, volumes, second)
    run_crossval(words_of(data, "--dim", "2", "--learning_rate", "0.01"), slices, InHouse())
    return TwoFolds(
        data=data,
        volumes=volumes,
        slices=slices,
        jobs=(tuple(first.jobs), tuple(second.jobs)),
        failure=str(failure.value),
    )


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def metrics_of(results: Path) -> dict[str, Any]:
    return read_json(results / "final_metrics.json")


def held_out(results: Path, fold: int) -> list[str]:
    return read_json(results / "splits_final.json")[fold]["val"]


def test_a_failed_fold_is_named_and_the_next_call_goes_on_with_it_alone(two_folds: TwoFolds) -> None:
    first, second = two_folds.jobs
    assert [job.fold for job in first] == [0, 1]
    assert "Fold 0 failed with exit status 1" in two_folds.failure
    assert "Fold 1" not in two_folds.failure
    (again,) = second
    assert again.fold == 0
    assert "--resume_training" in again.words
    assert "--resume_training" not in first[0].words
    log = read_log(two_folds.volumes / "fold_0" / "logs.json")
    epochs = [line for line in log if line["type"] == "LOG" and len(line["step"]) == 1]
    assert len(epochs) == 1  # the epoch behind the checkpoint was not trained again


def test_all_cases_are_scored_once_by_the_fold_that_held_them_out(two_folds: TwoFolds) -> None:
    results = two_folds.volumes
    found = metrics_of(results)
    sides = [held_out(results, fold) for fold in (0, 1)]
    assert sorted(sides[0] + sides[1]) == sorted(table(results / "validation" / "predictions.csv"))
    assert found["num_cases"] == found["classification"]["num_cases"] == 12
    assert set(found["folds"]) == {"0", "1"}
    for fold, cases in enumerate(sides):
        own = table(results / f"fold_{fold}" / "validation" / "predictions.csv")
        pooled = table(results / "validation" / "predictions.csv")
        assert {case: pooled[case] for case in cases} == own
    summary = read_json(results / "validation" / "summary.json")
    of_folds = [read_json(results / f"fold_{fold}" / "validation" / "summary.json") for fold in (0, 1)]
    organ = [
        case["metrics"]["1"]["Dice"] for part in (summary, *of_folds) for case in part["metric_per_case"]
    ]
    assert sorted(organ[:12]) == sorted(organ[12:])
    assert found["structures"]["pancreas"]["dsc_mean"] == pytest.approx(np.mean(organ[:12]))
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "Cross-validation of" in page
    assert "Fold 1" in page
    assert "is not finished" not in page


@pytest.mark.flag("folds")
def test_a_part_of_the_folds_is_trained_and_the_report_says_what_is_missing(
    two_folds: TwoFolds, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(two_folds.volumes / "fold_1", tmp_path / "fold_1")
    trainer = InHouse()
    run_crossval(words_of(two_folds.data, "--npz", "--folds", "1"), tmp_path, trainer)
    assert trainer.jobs == []
    assert "Fold 1 is finished" in capsys.readouterr().err
    assert metrics_of(tmp_path)["num_cases"] == len(held_out(tmp_path, 1))
    assert "Fold 0 is not finished" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="--folds 2: the folds are 0 to 1"):
        run_crossval(words_of(two_folds.data, "--folds", "2"), tmp_path, trainer)


def test_other_options_or_other_folds_than_those_of_a_trained_fold_are_refused(two_folds: TwoFolds) -> None:
    trainer = InHouse()
    for flags, message in (
        (
            ["--learning_rate", "0.5"],
            r"fold_0 was trained with other options: --learning_rate unset \(now 0.5",
        ),
        (["--nfolds", "3"], r"--nfolds 2 \(now 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            run_crossval(words_of(two_folds.data, *flags), two_folds.volumes, trainer)
    assert trainer.jobs == []


def test_folds_of_two_plans_are_not_mixed(two_folds: TwoFolds, tmp_path: Path) -> None:
    """One fold is trained, its plan is edited, and the other fold is to be trained."""
    results, data = tmp_path / "results", tmp_path / "prepared"
    shutil.copytree(two_folds.volumes / "fold_0", results / "fold_0")
    shutil.copytree(two_folds.data / f"{TASK}_3d", data / f"{TASK}_3d")
    file = data / f"{TASK}_3d" / "plan.json"
    plan = read_json(file)
    trainer = InHouse()
    stages = [plan["stages"][0] | {"channels": 12}, *plan["stages"][1:]]
    write_json(file, plan | {"stages": stages, "batch_size": plan["batch_size"] + 1})
    with pytest.raises(
        DatasetError, match=r"fold_0 was trained with another plan than --plan default"
    ) as told:
        run_crossval(words_of(data, "--npz"), results, trainer)
    batch = plan["batch_size"]
    assert f"is now: batch_size {batch} (now {batch + 1}), stages." in str(told.value)
    assert trainer.jobs == []
    write_json(file, plan)
    run_crossval(words_of(data, "--npz", "--folds", "0"), results, trainer)


@pytest.mark.parametrize(
    "flags", [["--fold", "1"], ["--resume_training"], ["--no_save_ckpt"], ["--exec_mode", "predict"]]
)
def test_what_the_cross_validation_decides_is_refused(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{flags[0]}: not in a cross-validation"):
        run_crossval(words_of(tmp_path, *flags), tmp_path, InHouse())


def test_folds_at_once_means_nothing_to_a_single_training(tmp_path: Path) -> None:
    options = RunOptions(results=tmp_path, folds_at_once=2)
    for command in (train.run, inference.run):
        with pytest.raises(UserError, match=r"--folds_at_once is for scripts/crossval\.py"):
            command(options)


def test_new_scans_are_predicted_by_all_folds_together(
    two_folds: TwoFolds, phantom: "Phantom", tmp_path: Path
) -> None:
    words = words_of(two_folds.data, "--exec_mode", "predict", "-i", str(phantom.raw / "test"))
    answers = {}
    for name, source in (
        ("both", two_folds.volumes),
        ("0", two_folds.volumes / "fold_0"),
        ("1", two_folds.volumes / "fold_1"),
    ):
        flags = ["--results", str(source), "-o", str(tmp_path / name)]
        inference.run(read_command([*words, *flags], program="main.py", description="").options)
        answers[name] = table(tmp_path / name / "predictions.csv")
    assert len(read_json(tmp_path / "both" / "run.json")["checkpoints"]) == 2
    for case, row in answers["both"].items():
        singles = [float(answers[fold][case]["prob_0"]) for fold in "01"]
        assert float(row["prob_0"]) == pytest.approx(np.mean(singles), abs=2e-6)


def test_a_case_that_one_of_the_folds_was_trained_on_is_not_scored(
    two_folds: TwoFolds, tmp_path: Path
) -> None:
    flags = ["--exec_mode", "predict", "--results", str(two_folds.volumes), "-o", str(tmp_path)]
    options = read_command(words_of(two_folds.data, *flags), program="main.py", description="").options
    with pytest.raises(DatasetError, match="Give --folds 0 too"):
        inference.run(options)


# --- postprocessing ----------------------------------------------------------------------------------------


def with_masks(two_folds: TwoFolds, results: Path, change: Callable[[np.ndarray], np.ndarray]) -> RunOptions:
    """A copy of the cross-validation whose masks are the references, changed."""
    shutil.copytree(two_folds.volumes, results)
    words = [*words_of(two_folds.data, "--npz"), "--results", str(results)]
    options = read_command(words, program="crossval.py", description="").options
    for fold in (0, 1):
        for case in read_fold(replace(options, fold=fold)).validation:
            path = results / f"fold_{fold}" / "validation" / f"{case.case_id}.nii.gz"
            reference = native_reference(case)
            assert reference is not None
            volume = read_label_volume(path)
            write_volume(
                path,
                change(np.maximum(reference, 0).astype(np.uint8)),
                affine=volume.affine,
                qform_code=1,
                sform_code=1,
                spacing_mm=volume.spacing_mm,
            )
    crossval.run(options, (), InHouse())
    return options


def with_island(mask: np.ndarray) -> np.ndarray:
    """Some lesion in the corner, where there is none."""
    mask[:2, :2, :2] = 2
    return mask


def test_an_island_in_every_mask_is_removed_from_new_masks_too(
    two_folds: TwoFolds, phantom: "Phantom", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = with_masks(two_folds, tmp_path / "islands", with_island)
    found = read_json(options.results / "postprocessing.json")
    assert found["dice_before"] < found["dice_after"] == 1
    assert found["steps"]
    assert len(found["networks"]) == 2
    capsys.readouterr()
    words = ["--exec_mode", "predict", "-i", str(phantom.raw / "test"), "-o", str(tmp_path / "out")]
    words = words_of(two_folds.data, "--results", str(options.results), *words)
    inference.run(read_command(words, program="main.py", description="").options)
    assert "largest component of" in capsys.readouterr().err
    applied = read_json(tmp_path / "out" / "run.json")["postprocessing"]
    assert applied["steps"] == found["steps"]


def test_where_no_component_is_wrong_none_is_removed(two_folds: TwoFolds, tmp_path: Path) -> None:
    options = with_masks(two_folds, tmp_path / "right", lambda mask: mask)
    found = read_json(options.results / "postprocessing.json")
    assert found["steps"] == []
    assert found["dice_before"] == found["dice_after"] == 1
    assert metrics_of(options.results)["postprocessing"]["steps"] == []


# --- the best configuration --------------------------------------------------------------------------------


@pytest.mark.flag("best_configuration:results", "best_configuration:output")
def test_the_best_of_two_and_their_pair_is_found_and_its_command_predicts(
    two_folds: TwoFolds, phantom: "Phantom", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = (two_folds.volumes, two_folds.slices)
    path = best_configuration.run(BestOptions(results=compared, output=tmp_path / "best", device="cpu"))
    found = read_json(path)
    singles = [metrics_of(results)["dsc_mean"] for results in compared]
    dice = list(found["all_results"].values())
    assert dice[:2] == pytest.approx(singles)
    assert len(dice) == 3
    assert found["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(dice)
    masks = list((tmp_path / "best" / "pair_0_1" / "validation").glob("*.nii.gz"))
    assert len(masks) == 12
    assert found["command"] in capsys.readouterr().out
    assert (tmp_path / "best" / "inference_instructions.txt").read_text() == f"{found['command']}\n"
    words = shlex.split(found["command"].replace("INPUT", str(phantom.raw / "test")))
    assert words[:2] == ["python", "main.py"]
    words = [*words[2:-1], str(tmp_path / "out"), "--device", "cpu"]
    inference.run(read_command(words, program="main.py", description="").options)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_kept_probabilities_and_computed_ones_give_one_pair(two_folds: TwoFolds, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(two_folds.volumes, bare)
    for fold in (0, 1):
        shutil.rmtree(bare / f"fold_{fold}" / "validation" / "probabilities")
    dice = []
    for place, volumes in (("kept", two_folds.volumes), ("computed", bare)):
        options = BestOptions(results=(volumes, two_folds.slices), output=tmp_path / place, device="cpu")
        found = read_json(best_configuration.run(options))
        dice.append(list(found["all_results"].values()))
    assert dice[0] == pytest.approx(dice[1], abs=1e-3)  # kept ones have half precision


@pytest.mark.flag("best_configuration:device")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device that is missing here is a GPU")
def test_probabilities_are_computed_on_the_device_asked_for(two_folds: TwoFolds, tmp_path: Path) -> None:
    compared = (two_folds.slices, two_folds.slices)  # without kept probabilities
    with pytest.raises(EnvironmentFault, match="--gpus 1 were asked for, 0 are visible"):
        best_configuration.run(BestOptions(results=compared, output=tmp_path, device="cuda"))


@pytest.mark.flag("best_configuration:pairs", "best_configuration:folds", "best_configuration:data")
def test_pairs_can_be_left_out_folds_chosen_and_data_moved(two_folds: TwoFolds, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(two_folds.data, moved)
    options = BestOptions(
        results=(two_folds.slices, two_folds.volumes),
        data=(moved,),
        folds=(1,),
        pairs=False,
        output=tmp_path / "best",
    )
    of_all = [(results / "postprocessing.json").read_bytes() for results in options.results]
    found = read_json(best_configuration.run(options))
    assert of_all == [(results / "postprocessing.json").read_bytes() for results in options.results]
    assert len(read_json(tmp_path / "best" / "postprocessing.json")["networks"]) == 1
    assert len(found["all_results"]) == 2
    assert found["num_cases"] == len(held_out(two_folds.volumes, 1))
    assert "--folds 1" in found["command"]
    with pytest.raises(UserError, match="one for each of the 2 --results"):
        best_configuration.run(replace(options, data=(moved,) * 3))
    with pytest.raises(DatasetError, match="nowhere"):
        best_configuration.run(replace(options, data=(tmp_path / "nowhere",)))


def test_a_fold_that_was_never_trained_is_named_with_the_command(two_folds: TwoFolds, tmp_path: Path) -> None:
    shutil.copytree(two_folds.slices / "fold_1", tmp_path / "fold_1")
    with pytest.raises(DatasetError) as error:
        best_configuration.run(BestOptions(results=(tmp_path,)))
    message = str(error.value)
    assert str(tmp_path / "fold_0" / "final_metrics.json") in message
    command = shlex.split(message.partition("Run: ")[2])
    assert command[:2] == ["python", "scripts/crossval.py"]
    options = read_command(command[2:], program="crossval.py", description="").options
    assert (options.folds, options.dim, options.results) == ((0,), 2, tmp_path)
    assert options.optimiser.learning_rate == 0.01
    with pytest.raises(DatasetError, match="is no cross-validation"):
        best_configuration.run(BestOptions(results=(tmp_path / "fold_1",)))
    # Prediction says the same; a fold that the dataset does not have cannot be trained.
    with pytest.raises(DatasetError) as error:
        find_members(RunOptions(results=tmp_path, folds=(0, 1)))
    assert str(error.value).partition("run: ")[2] == message.partition("Run: ")[2]
    with pytest.raises(DatasetError, match="The folds of .* are 0 to 1"):
        find_members(RunOptions(results=two_folds.slices, folds=(3,)))


def test_trainings_on_other_cases_are_not_compared(two_folds: TwoFolds, tmp_path: Path) -> None:
    results = tmp_path / "other"
    shutil.copytree(two_folds.slices, results)
    data = tmp_path / "data"
    shutil.copytree(two_folds.data, data)
    splits = read_json(results / "splits_final.json")
    for fold in splits:
        fold["val"] = fold["val"][1:]
    for place in (data / f"{TASK}_2d", results / "fold_0", results / "fold_1"):
        write_json(place / "splits_final.json", splits)
    options = BestOptions(results=(two_folds.volumes, results), data=(two_folds.data, data))
    with pytest.raises(DatasetError, match="do not hold out the same cases"):
        best_configuration.run(options)
