"""Left and right from an option to the checkpoint, and from there to the mirrored views."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from data_loading.augmentations.mirror import Mirror
from nnunet.inference.sliding_window import WindowRule
from nnunet.training.checkpoint import load_model
from nnunet.training.trainer import choose_machine
from scripts import benchmark, benchmark_predict, train
from scripts.assemble import build_parts
from scripts.benchmark_options import BenchmarkOptions
from scripts.fold_data import read_fold
from scripts.model_run import find_checkpoint, open_model
from scripts.process_place import shard_of
from scripts.run_options import RunOptions
from utils.contracts import Dataset
from utils.errors import UserError
from utils.options import parse
from utils.prepared_folder import DATASET, PLAN, read_plan
from utils.storage import read_record, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story
Options = Callable[..., RunOptions]
PAIR = "pancreas:lesion"


@pytest.fixture(scope="module")
def sided(tmp_path_factory: pytest.TempPathFactory, run_options: Options) -> Path:
    """The results of a run whose two labels change places."""
    results = tmp_path_factory.mktemp("sided")
    train.run(run_options(results, "--left_right_pairs", PAIR, "--epochs", "1", "--fit_classifier", "none"))
    return results


@pytest.mark.flag("left_right_pairs")
def test_pairs_are_trained_with_and_stand_in_the_checkpoint(sided: Path, run_options: Options) -> None:
    plan = load_model(find_checkpoint(sided), torch.device("cpu")).plan
    assert (plan.left_right_pairs, plan.left_right) == (((1, 2),), "swap")
    model = open_model(run_options(sided, "--tta"))
    assert model.rule.left_right is not None
    assert model.rule.left_right.label_order == (0, 2, 1)


@pytest.mark.flag("mirror_left_right")
def test_prediction_mirrors_as_in_training_unless_told_otherwise(sided: Path, run_options: Options) -> None:
    rules = {}
    for choice in ("auto", "swap", "off", "plain"):
        rule = open_model(run_options(sided, "--tta", "--mirror_left_right", choice)).rule.left_right
        assert rule is not None
        rules[choice] = (rule.mirrors, rule.label_order)
    assert rules == {
        "auto": (True, (0, 2, 1)),
        "swap": (True, (0, 2, 1)),
        "off": (False, ()),
        "plain": (True, ()),
    }


def test_a_model_without_pairs_cannot_swap(trained: Path, run_options: Options) -> None:
    with pytest.raises(UserError, match="trained without pairs"):
        open_model(run_options(trained, "--tta", "--mirror_left_right", "swap"))


@pytest.mark.flag("mirror_left_right")
def test_training_leaves_an_axis_out_or_swaps(run_options: Options, tmp_path: Path) -> None:
    def mirror(*flags: str) -> Mirror:
        options = run_options(tmp_path, *flags)
        parts = build_parts(options, read_fold(options), shard_of(options, choose_machine("cpu", 1, 1)))
        (part,) = (part for part in parts.loader.recipe if isinstance(part, Mirror))
        return part

    assert mirror() == Mirror()
    assert mirror("--mirror_left_right", "off").axes == (0, 1)
    assert mirror("--left_right_pairs", PAIR).pairs == (1, 2)


def rename_labels(folder: Path, names: tuple[str, ...]) -> None:
    """Other names in the plan of a prepared folder and in its dataset, which have to agree."""
    dataset = read_record(Dataset, folder / DATASET)
    write_json(folder / DATASET, replace(dataset, label_names=names))
    write_json(folder / PLAN, replace(read_plan(folder), label_names=names))


def test_sides_are_found_in_the_names_of_the_plan(
    phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(phantom.prepared / "500_3d", tmp_path / "500_3d"))
    assert read_plan(folder).left_right_pairs is None
    rename_labels(folder, ("background", "kidney_L", "kidney_R"))
    plan = read_fold(run_options(tmp_path, "--data", str(tmp_path))).plan
    assert (plan.left_right_pairs, plan.left_right) == (((1, 2),), "swap")


@pytest.mark.parametrize("fold", [(), ("--fold", "0")])
def test_a_benchmark_mirrors_as_prediction_does(
    phantom: "Phantom", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: tuple[str, ...]
) -> None:
    folder = tmp_path / "500_3d"
    shutil.copytree(phantom.prepared / "500_3d", folder)
    rename_labels(folder, ("background", "kidney_left", "kidney_right"))
    rules: list[WindowRule] = []

    def predict(forward: object, scan: object, rule: WindowRule, **others: object) -> None:  # noqa: ARG001
        rules.append(rule)

    monkeypatch.setattr(benchmark_predict, "predict_case", predict)
    words = [
        "--mode",
        "predict",
        "--data",
        str(tmp_path),
        "--task",
        "500",
        "--device",
        "cpu",
        "--warmup",
        "1",
    ]
    words += ["--test_batches", "1", "--repeats", "1", "--num_workers", "1", *fold]
    benchmark.run(parse(BenchmarkOptions, words, program="benchmark.py", description=""))
    assert [rule.mirror for rule in rules] == [False, False, True, True]
    assert [rule.left_right and rule.left_right.label_order for rule in rules] == [(0, 2, 1)] * 4
