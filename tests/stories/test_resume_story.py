"""What a resumed run takes from its own command line, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint
from scripts import train
from scripts.run_options import RunOptions
from utils.errors import DatasetError
from utils.run_log import read_log
from utils.storage import read_json

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]
SGD = ["--optimizer", "sgd", "--learning_rate", "0", "--fit_classifier", "none"]


@pytest.fixture
def results(run_options: Options, tmp_path: Path) -> Path:
    """Three epochs at the rate 0, after which the validation loss has not fallen twice."""
    train.run(run_options(tmp_path, "--epochs", "3", "--patience", "100", *SGD))
    return tmp_path


def last_of(results: Path) -> dict[str, Any]:
    return read_checkpoint(results / "checkpoints" / "last.ckpt")


def epochs_of(results: Path) -> int:
    lines = [line for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return len([line for line in lines if len(line["step"]) == 1])


@pytest.mark.flag("patience")
@pytest.mark.parametrize(("patience", "epochs"), [("4", 5), ("0", 8)])
def test_a_resume_has_the_patience_of_its_own_command_line_and_goes_on_waiting(
    run_options: Options, results: Path, patience: str, epochs: int
) -> None:
    flags = ["--resume_training", "--epochs", "8", "--patience", patience, *SGD]
    train.run(run_options(results, *flags))
    assert epochs_of(results) == epochs


@pytest.mark.flag("momentum")
def test_a_resume_has_the_momentum_of_its_own_command_line(run_options: Options, results: Path) -> None:
    train.run(run_options(results, "--resume_training", "--epochs", "4", "--momentum", "0.5", *SGD))
    (state,) = last_of(results)["optimizer_states"]
    assert {group["momentum"] for group in state["param_groups"]} == {0.5}


@pytest.mark.flag("optimizer")
def test_a_resume_with_another_optimiser_is_refused(run_options: Options, results: Path) -> None:
    flags = ["--resume_training", "--epochs", "4", "--optimizer", "adam"]
    with pytest.raises(DatasetError, match="with --optimizer sgd, this run has --optimizer adam"):
        train.run(run_options(results, *flags))


@pytest.mark.flag("epochs")
def test_a_resume_that_ends_before_it_begins_is_refused(run_options: Options, results: Path) -> None:
    with pytest.raises(DatasetError, match="has 3 epochs behind it, this run ends after --epochs 2"):
        train.run(run_options(results, "--resume_training", "--epochs", "2", *SGD))


def test_a_resume_of_a_finished_run_validates_it_once_more(run_options: Options, results: Path) -> None:
    (results / "final_metrics.json").unlink()
    best = next((results / "checkpoints").glob("epoch=*.ckpt"))
    assert train.run(run_options(results, "--resume_training", "--epochs", "3", *SGD)).name == best.name
    assert epochs_of(results) == 3
    assert read_json(results / "final_metrics.json")["num_cases"] == 3


def test_a_results_folder_that_was_moved_keeps_its_best_score(run_options: Options, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    train.run(run_options(before, "--epochs", "2", *SGD))
    (best,) = (before / "checkpoints").glob("epoch=*.ckpt")
    before.rename(after)
    chosen = train.run(run_options(after, "--resume_training", "--epochs", "3", *SGD))
    # At the rate 0 no later epoch is better.
    assert chosen == after / "checkpoints" / best.name
    assert [path.name for path in (after / "checkpoints").glob("epoch=*.ckpt")] == [best.name]


def test_a_run_from_before_labels_changed_sides_goes_on(run_options: Options, tmp_path: Path) -> None:
    flags = ["--augment", "mirror", "--fit_classifier", "none"]
    train.run(run_options(tmp_path, "--epochs", "1", *flags))
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    plan = content[MODEL_KEY]["plan"]
    del plan["left_right"], plan["left_right_pairs"]
    (layout,) = layouts_in(content)
    layout["augmentations"] = ["Mirror(probability=0.5, axes=(0, 1, 2))"]
    torch.save(content, path)
    train.run(run_options(tmp_path, "--resume_training", "--epochs", "2", *flags))
    assert epochs_of(tmp_path) == 2


def layouts_in(content: Any) -> list[dict[str, Any]]:
    """What a loader's state compares, wherever it lies in a checkpoint."""
    if not isinstance(content, dict):
        return []
    own = [content["layout"]] if "delivered" in content else []
    return own + [layout for value in content.values() for layout in layouts_in(value)]
