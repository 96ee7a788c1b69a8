"""Which models a prediction takes, from paths alone."""

from pathlib import Path
from typing import Any

import pytest

from scripts import inference
from scripts.members import Member, find_members, fold_folders, results_of
from scripts.run_benchmark import benchmark_options
from scripts.run_options import RunOptions
from scripts.run_start import refuse_contradictory_start
from utils.errors import DatasetError, UserError


def trained(results: Path, *, finished: bool = True) -> Path:
    """A results folder with a checkpoint, and the metrics of a finished run."""
    checkpoint = results / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    if finished:
        (results / "final_metrics.json").touch()
    return checkpoint


def test_a_training_is_its_only_member(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    assert find_members(RunOptions(results=tmp_path)) == (Member(checkpoint=checkpoint, results=tmp_path),)


def test_checkpoints_elsewhere_belong_to_the_results(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path / "store")
    options = RunOptions(results=tmp_path / "results", ckpt_store_dir=tmp_path / "store")
    assert find_members(options) == (Member(checkpoint=checkpoint, results=tmp_path / "results"),)


@pytest.mark.flag("folds")
def test_a_cross_validation_is_all_its_finished_folds_or_those_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / f"fold_{fold}" for fold in (0, 2, 10)]
    for folder in folders:
        trained(folder, finished=folder.name != "fold_2")
    (tmp_path / "fold_notes").mkdir()
    assert list(fold_folders(tmp_path)) == [0, 2, 10]
    found = find_members(RunOptions(results=tmp_path))
    assert [member.results for member in found] == [folders[0], folders[2]]
    assert "fold 2 is not finished" in capsys.readouterr().err
    chosen = find_members(RunOptions(results=tmp_path, folds=(10, 2)))
    assert [member.results for member in chosen] == [folders[2], folders[1]]
    with pytest.raises(DatasetError, match="fold_1 has no checkpoint"):
        find_members(RunOptions(results=tmp_path, folds=(1,)))


@pytest.mark.flag("members")
def test_each_path_counts_alike_and_so_do_the_folds_in_it(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone")
    for fold in (0, 1):
        trained(tmp_path / "cv" / f"fold_{fold}")
    found = find_members(RunOptions(members=(alone, tmp_path / "cv")))
    assert [(member.results.name, member.weight) for member in found] == [
        ("alone", 1.0),
        ("fold_0", 0.5),
        ("fold_1", 0.5),
    ]


def test_contradictions_and_empty_folders_are_told(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path / "one")
    with pytest.raises(UserError, match="--ckpt_path is one model"):
        find_members(RunOptions(ckpt_path=checkpoint, members=(checkpoint,)))
    for options in (
        RunOptions(results=tmp_path / "one", folds=(1,)),
        RunOptions(members=(checkpoint,), folds=(1,)),
    ):
        with pytest.raises(UserError, match="--folds chooses among the folds"):
            find_members(options)
    with pytest.raises(DatasetError, match="has no checkpoint"):
        find_members(RunOptions(results=tmp_path))
    trained(tmp_path / "cv" / "fold_0", finished=False)
    with pytest.raises(DatasetError, match="has no finished fold"):
        find_members(RunOptions(results=tmp_path / "cv"))


def test_a_checkpoint_lies_in_its_results_or_was_moved(tmp_path: Path) -> None:
    assert results_of(tmp_path / "checkpoints" / "last.ckpt") == tmp_path
    assert results_of(tmp_path / "model.ckpt") == tmp_path


@pytest.mark.parametrize(
    "given",
    [
        {"members": (Path("a"),)},
        {"folds": (1,)},
        {"predictor": "segmentation"},
        {"postprocessing": "none"},
        {"folds_at_once": 2},
    ],
)
def test_what_only_a_prediction_has_is_refused_elsewhere(given: dict[str, Any], tmp_path: Path) -> None:
    (name,) = given
    with pytest.raises(UserError, match=f"--{name}"):
        refuse_contradictory_start(RunOptions(**given))
    checkpoint = trained(tmp_path)
    with pytest.raises(UserError, match=f"--{name}: --exec_mode evaluate"):
        inference.evaluate(RunOptions(ckpt_path=checkpoint, **given))


@pytest.mark.flag("fold")
def test_a_benchmark_of_all_cases_takes_all_cases() -> None:
    options = RunOptions(benchmark=True, fold="all")
    assert benchmark_options(options).fold is None
    assert benchmark_options(RunOptions(benchmark=True, fold=2)).fold == 2


@pytest.mark.flag("ckpt_path", "results")
def test_a_checkpoint_belongs_to_the_folder_around_it_or_to_the_results_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = trained(tmp_path / "run")
    (found,) = find_members(RunOptions(ckpt_path=checkpoint))
    assert found == Member(checkpoint=checkpoint, results=tmp_path / "run")
    (named,) = find_members(RunOptions(ckpt_path=checkpoint, results=tmp_path / "out"))
    assert (named.results, named.places) == (tmp_path / "out", (tmp_path / "out", tmp_path / "run"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))  # the root of all results names none of them
    assert find_members(RunOptions(ckpt_path=checkpoint, results=tmp_path)) == (found,)
