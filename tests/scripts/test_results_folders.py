"""Which folder a run writes into below nnUNet_results, and which it leaves to the training that has it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunet.options import TrainingOptions
from nnunet.training.checkpoint import MODEL_KEY
from scripts.fold_data import FoldCases
from scripts.results_folders import own_results, refuse_used, remove_scores
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from tests.data_loading.conftest import make_footprint
from utils.contracts import Plan, PreprocessedCase
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.run_log import RunLog
from utils.storage import to_plain, write_json

Plans = Callable[..., Plan]
OTHER = "Dataset002_Other"


def case_named(name: str) -> PreprocessedCase:
    file = Path(f"{name}_x.npy")
    return PreprocessedCase(
        case_id=name,
        patient_id=name,
        image=file,
        label=file,
        foreground=file,
        shape=(4, 4, 4),
        class_target=0,
        footprint=make_footprint((4, 4, 4)),
    )


def fold_of(plan: Plan, *, held_out: str = "b") -> FoldCases:
    sides = [tuple(case_named(name) for name in "ab" if (name == held_out) is held) for held in (False, True)]
    return FoldCases(folder=Path(), plan=plan, training=sides[0], validation=sides[1], folds=())


def save_training(options: RunOptions, plan: Plan, *, is_logged: bool = True) -> None:
    path = options.store / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    card = {"plan": to_plain(plan), "training_cases": ["a"]}
    torch.save({"state_dict": {}, MODEL_KEY: card}, path)
    if is_logged:
        with RunLog(options.results / options.logname) as log:
            log.log("PARAMETER", describe(options))


@pytest.fixture
def plan(make_plan: Plans) -> Plan:
    return make_plan()


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(results=tmp_path / "results")


def test_an_empty_folder_and_the_same_training_are_nobody_elses(options: RunOptions, plan: Plan) -> None:
    refuse_used(options, fold_of(plan))
    save_training(options, plan)
    refuse_used(options, fold_of(plan))
    refuse_used(options, fold_of(replace(plan, batch_size=9)))  # planned anew, under the same name


@pytest.mark.parametrize(
    ("changes", "plan_changes", "asked"),
    [
        ({"fold": 1}, {}, "fold 1 of Dataset001_Tiny --plan default (3d_fullres)"),
        ({"fold": "all"}, {}, "fold all of Dataset001_Tiny --plan default (3d_fullres)"),
        ({"plan": "resenc_m"}, {}, "fold 0 of Dataset001_Tiny --plan resenc_m (3d_fullres)"),
        ({"dim": 2}, {"configuration": "2d"}, "fold 0 of Dataset001_Tiny --plan default (2d)"),
        ({"task": "2"}, {"dataset": OTHER}, "fold 0 of Dataset002_Other --plan default (3d_fullres)"),
    ],
)
def test_another_fold_plan_or_dataset_is_refused_with_what_is_there_and_both_remedies(
    options: RunOptions,
    plan: Plan,
    changes: dict[str, object],
    plan_changes: dict[str, object],
    asked: str,
) -> None:
    save_training(options, plan)
    now = replace(options, **changes)  # pyright: ignore[reportArgumentType]
    fold = fold_of(replace(plan, **plan_changes))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError) as told:
        refuse_used(now, fold)
    there = "holds fold 0 of Dataset001_Tiny --plan default (3d_fullres), whose checkpoints"
    assert all(
        part in str(told.value) for part in (there, f"asked for is {asked}.", "--results", "--overwrite")
    )
    refuse_used(replace(now, overwrite=True), fold)
    refuse_used(replace(now, training=TrainingOptions(save_ckpt=False)), fold)


def test_without_a_log_the_cases_tell_another_fold(options: RunOptions, plan: Plan) -> None:
    shared = replace(options, ckpt_store_dir=options.results / "store")
    save_training(shared, plan, is_logged=False)
    refuse_used(shared, fold_of(plan, held_out="b"))
    with pytest.raises(UserError, match="holds fold unknown of Dataset001_Tiny"):
        refuse_used(shared, fold_of(plan, held_out="a"))


def test_a_damaged_checkpoint_may_be_replaced_by_the_same_fold_only(options: RunOptions, plan: Plan) -> None:
    save_training(options, plan)
    (options.results / "checkpoints" / "last.ckpt").write_bytes(b"cut off")
    refuse_used(options, fold_of(plan))
    with pytest.raises(UserError, match="holds fold 0 --plan default"):
        refuse_used(replace(options, fold=1), fold_of(plan))


def test_a_training_does_not_move_in_with_a_cross_validation(options: RunOptions, plan: Plan) -> None:
    save_training(replace(options, results=options.results / "fold_0"), plan)
    with pytest.raises(UserError, match=r"holds a cross-validation \(fold_0\)"):
        refuse_used(options, fold_of(plan))
    refuse_used(replace(options, results=options.results / "fold_1", fold=1), fold_of(plan))


def test_scores_of_an_earlier_training_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("validation/a.nii.gz", "final_metrics.json", "report.html", "logs.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_scores(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["logs.json"]


# --- nnUNet_results ----------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_results; the dataset 001 is prepared, by a plan of slices too."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "models"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "prepared"))
    write_json(tmp_path / "prepared" / "001_3d" / "plan.json", plan)
    flat = replace(plan, configuration="2d", patch=(1, 16, 16))
    write_json(tmp_path / "prepared" / "001_2d" / "plan.json", flat)
    return tmp_path / "models"


def results_of(*words: str, per_fold: bool = True) -> Path:
    command = read_command(["--task", "1", *words], program="main.py", description="")
    return own_results(command, per_fold=per_fold).results


@pytest.mark.flag("results")
def test_every_fold_and_plan_has_a_folder_of_its_own(root: Path) -> None:
    dataset = root / "Dataset001_Tiny"
    assert results_of("--fold", "2") == dataset / "default__3d_fullres" / "fold_2"
    assert results_of("--fold", "all", "--dim", "2") == dataset / "default__2d" / "fold_all"
    assert results_of("--exec_mode", "evaluate") == dataset / "default__3d_fullres" / "fold_0"
    assert results_of(per_fold=False) == dataset / "default__3d_fullres"  # of a cross-validation
    assert results_of("--results", "mine") == Path("mine")


def test_a_prediction_finds_what_was_trained_there(root: Path) -> None:
    folder = root / "Dataset001_Tiny" / "default__3d_fullres"
    predict = ("--exec_mode", "predict")
    with pytest.raises(
        DatasetError, match="no training of --task 1 --dim 3 --plan default; there is nothing"
    ):
        results_of(*predict, "-i", "scans")
    for name in (
        "Dataset001_Tiny/default__3d_fullres",
        "Dataset001_Tiny/default__2d",
        "Dataset011_B/default__2d",
    ):
        (root / name / "fold_0").mkdir(parents=True)
    (folder / "cascade" / "fold_0").mkdir(parents=True)
    assert results_of(*predict, "-i", "scans") == folder
    assert results_of(*predict, "-i", "scans", "--plan", "cascade") == folder / "cascade"
    assert results_of(*predict, "-i", "scans", "--fold", "all") == folder / "fold_all"
    assert results_of(*predict, "--fold", "1") == folder / "fold_1"
    assert (
        results_of(*predict, "--task", "Dataset011_B", "--dim", "2", "-i", "s").parent.name == "Dataset011_B"
    )
    assert results_of(*predict, "-i", "scans", "--ckpt_path", "model.ckpt") == root
    with pytest.raises(
        DatasetError, match="--plan resenc_m; there is Dataset001_Tiny/default__2d, Dataset001"
    ):
        results_of(*predict, "-i", "scans", "--plan", "resenc_m")
    (root / "Dataset001_Again" / "default__3d_fullres").mkdir(parents=True)
    with pytest.raises(DatasetError, match="several trainings of --task 1"):
        results_of(*predict, "-i", "scans")


def test_a_variable_that_names_the_results_of_a_training_is_taken_as_they_are(root: Path, plan: Plan) -> None:
    save_training(RunOptions(results=root), plan)
    assert results_of("--exec_mode", "predict", "-i", "scans") == root
