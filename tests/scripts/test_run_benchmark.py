"""main.py --benchmark: what of a run's options reaches the measurement, and what is refused."""

from pathlib import Path

import pytest

from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_refusals import refuse_impossible
from scripts.run_benchmark import BATCHES, benchmark_options
from scripts.run_recipes import read_command
from utils.errors import UserError


def translated(*words: str) -> BenchmarkOptions:
    options = read_command(["--benchmark", *words], program="main.py", description="").options
    found = benchmark_options(options)
    refuse_impossible(found)  # what comes out can be measured
    return found


@pytest.mark.flag("benchmark")
def test_a_run_becomes_the_benchmark_of_its_own_network_loader_and_optimiser() -> None:
    words = (
        "--amp --batch_size 3 --data D --task 04 --fold 2 --aug none --filters 4 8 --optimizer sgd --focal"
    )
    found = translated(*words.split(), "--gpus", "2", "--nodes", "3", "--affinity", "socket", "--compile")
    assert (found.mode, found.amp, found.compile) == ("train", True, True)
    assert (found.data, found.task, found.fold) == (Path("D"), "04", 2)
    assert (found.loader.batch_size, found.loader.augment) == (3, ("none",))
    assert (found.network.filters, found.optimiser.optimizer, found.loss.focal) == ((4, 8), "sgd", True)
    assert (found.gpus, found.nodes, found.affinity) == (2, 3, "socket")


@pytest.mark.flag("benchmark", "train_batches", "test_batches", "warmup")
def test_batches_are_counted_once_and_are_nvidias_200_unless_given() -> None:
    usual = translated()
    assert (usual.warmup, usual.train_batches, usual.test_batches, usual.repeats) == (5, BATCHES, BATCHES, 1)
    asked = translated("--train_batches", "20", "--test_batches", "30", "--warmup", "7")
    assert (asked.warmup, asked.train_batches, asked.test_batches) == (7, 20, 30)
    with pytest.raises(UserError, match="--warmup should be at least 1"):
        translated("--warmup", "0")


@pytest.mark.flag("benchmark")
def test_a_prediction_passes_as_many_windows_as_prediction_does() -> None:
    predict = ("--exec_mode", "predict")
    assert translated(*predict).loader.batch_size == 4
    found = translated(*predict, "--val_batch_size", "8", "--overlap", "0.25")
    assert (found.mode, found.loader.batch_size, found.val_batch_size, found.overlap) == (
        "predict",
        8,
        8,
        0.25,
    )
    assert translated(*predict, "--val_batch_size", "8", "--batch_size", "2").loader.batch_size == 2


@pytest.mark.flag("benchmark", "recipe")
@pytest.mark.parametrize("mode", ["train", "predict"])
def test_the_values_of_a_recipe_are_no_mistake(mode: str) -> None:
    found = translated("--exec_mode", mode, "--recipe", "nnunet")
    assert found.amp
    assert found.network.deep_supervision
    assert found.loader.steps_per_epoch == 0
    assert (found.optimiser.schedule == "poly") == (mode == "train")


@pytest.mark.flag("benchmark", "logname", "results")
def test_the_log_is_nvidias_unless_it_has_a_name() -> None:
    assert translated("--results", "R").logname == "perf.json"
    assert translated("--results", "R").results == Path("R")
    assert translated("--logname", "mine.json").logname == "mine.json"


@pytest.mark.flag("benchmark")
def test_synthetic_data_needs_no_fold() -> None:
    assert translated("--data", "synthetic").fold is None


@pytest.mark.flag("benchmark")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resume_training", "--save_preds"), "train does not use --save_preds, --resume_training:"),
        (("--epochs", "3", "--steps_per_epoch", "9"), "train does not use --steps_per_epoch, --epochs:"),
        (("--time_budget", "3", "--profile"), "train does not use --time_budget, --profile:"),
        (("--tta", "--overlap", "0.1"), "train does not use --overlap, --tta:"),
        (("-i", "scans"), "train does not use --input:"),
        (("--exec_mode", "predict", "-i", "scans", "-o", "out"), "predict does not use --input, --output:"),
        (("--exec_mode", "predict", "--optimizer", "sgd"), "predict does not use --optimizer:"),
        (("--exec_mode", "predict", "--ckpt_path", "a.ckpt"), "predict does not use --ckpt_path:"),
        (("--exec_mode", "evaluate"), "measures --exec_mode train or predict, not evaluate"),
    ],
)
def test_options_that_no_benchmark_uses_are_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translated(*words)
