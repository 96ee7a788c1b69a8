"""A fresh start in the folder of an earlier training: what is replaced, what is refused, who says it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

from nnunet.training.checkpoint import read_checkpoint
from scripts import train
from scripts.model_run import find_checkpoint
from scripts.run_options import RunOptions
from utils.errors import UserError

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]
QUICK = ["--max_epochs", "1", "--fit_classifier", "none"]
HOLDS = "holds an earlier training: its checkpoints are replaced"


@pytest.fixture
def results(run_options: Options, tmp_path: Path) -> Path:
    """The folder of a finished training of one epoch."""
    train.run(run_options(tmp_path / "results", *QUICK))
    return tmp_path / "results"


@pytest.mark.flag("save_ckpt")
def test_a_fresh_start_replaces_all_checkpoints_but_not_other_files(
    run_options: Options, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results / "checkpoints"
    (folder / "epoch=900.ckpt").write_bytes(b"of a longer training")
    (folder / "mine.ckpt").write_bytes(b"of nobody's training")
    before = read_checkpoint(folder / "last.ckpt")["state_dict"]
    best = train.run(run_options(results, "--seed", "2", *QUICK))
    assert {path.name for path in folder.iterdir()} == {"epoch=0.ckpt", "last.ckpt", "mine.ckpt"}
    assert find_checkpoint(results) == best
    after = read_checkpoint(best)["state_dict"]
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert HOLDS in capsys.readouterr().err


def test_before_an_epoch_is_validated_no_older_best_one_is_found(run_options: Options, results: Path) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("cut off")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="cut off"):
        patch.setattr("nnunet.training.module.MultiTaskModule.validation_step", stop)
        train.run(run_options(results, *QUICK))
    assert not list(results.rglob("*.ckpt"))


@pytest.mark.flag("save_ckpt")
def test_a_run_without_checkpoints_replaces_none(
    run_options: Options, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = str(results / "checkpoints" / "last.ckpt")
    train.run(run_options(results, "--no_save_ckpt", "--ckpt_path", start, *QUICK))
    assert {path.name for path in (results / "checkpoints").iterdir()} == {"epoch=0.ckpt", "last.ckpt"}
    assert "its checkpoints stay" in capsys.readouterr().err


@pytest.mark.flag("ckpt_path")
@pytest.mark.parametrize("store", [False, True])
def test_a_start_from_the_checkpoints_that_it_replaces_is_refused(
    run_options: Options, results: Path, tmp_path: Path, *, store: bool
) -> None:
    link = tmp_path / "link.ckpt"
    link.symlink_to(results / "checkpoints" / "last.ckpt")
    words = [tmp_path / "other", "--ckpt_store_dir", str(results)] if store else [results]
    with pytest.raises(UserError, match="Choose another --results or --ckpt_store_dir"):
        train.run(run_options(*words, "--ckpt_path", str(link), *QUICK))
    assert find_checkpoint(results).is_file()


def test_a_start_from_another_folder_is_read_before_anything_is_removed(
    run_options: Options, results: Path, tmp_path: Path
) -> None:
    start, other = results / "checkpoints" / "last.ckpt", tmp_path / "other"
    train.run(run_options(other, "--ckpt_path", str(start), "--learning_rate", "0", *QUICK))
    train.run(run_options(other, "--ckpt_path", str(start), "--learning_rate", "0", *QUICK))
    ours, theirs = (read_checkpoint(path)["state_dict"] for path in (find_checkpoint(other), start))
    weights = [name for name in theirs if name.startswith(("network.encoder", "network.decoder"))]
    assert weights
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)


def test_one_process_speaks_of_the_earlier_training(
    run_options: Options,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    capsys.readouterr()
    train._tell_replaced(run_options(results))
    assert HOLDS not in capsys.readouterr().err
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    train._tell_replaced(run_options(results))
    assert HOLDS in capsys.readouterr().err


@pytest.mark.flag("overwrite")
def test_another_fold_does_not_replace_the_checkpoints_unless_it_is_told_to(
    run_options: Options, results: Path
) -> None:
    before = read_checkpoint(results / "checkpoints" / "last.ckpt")["multitask_nnunet"]
    message = r"holds fold 0 of Dataset500.*; asked for is fold all .*--results .*--overwrite"
    with pytest.raises(UserError, match=message):
        train.run(run_options(results, "--fold", "all", *QUICK))
    assert read_checkpoint(results / "checkpoints" / "last.ckpt")["multitask_nnunet"] == before
    stale = results / "validation" / "mask_of_fold_0.nii.gz"
    stale.touch()
    train.run(run_options(results, "--fold", "all", "--overwrite", *QUICK))
    after = read_checkpoint(results / "checkpoints" / "last.ckpt")["multitask_nnunet"]
    assert set(after["training_cases"]) > set(before["training_cases"])
    assert not stale.exists()
    assert not (results / "final_metrics.json").exists()  # no case is held out
