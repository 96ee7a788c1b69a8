"""What scripts/benchmark.py measures of parameter groups and learned task weights is what training does."""

import pytest
import torch

from scripts import benchmark_device
from scripts import benchmark_network as networks
from scripts import benchmark_train as training
from scripts.benchmark_options import BenchmarkOptions, with_synthetic_data
from utils.options import parse

WORDS = ("--mode", "train", "--input", "synthetic", "--device", "cpu", "--shape", "1", "16", "16", "16")
CLASSES = (*WORDS, "--filters", "4", "--batch_size", "2", "--classes", "2", "--branch", "simple")


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's peak is measured on small matrices here: its value is of no interest."""
    monkeypatch.setitem(benchmark_device.PEAK_SIZE, "cpu", 64)


def step_of(*words: str) -> training.TrainingStep:
    parsed = parse(BenchmarkOptions, (*CLASSES, *words), program="benchmark.py", description="")
    options = with_synthetic_data(parsed)
    work = networks.network_work(options)
    step = training.training_step(work, options)
    step(networks.synthetic_batch(work, options.seed))
    return step


@pytest.mark.flag("benchmark:head_learning_rate")
def test_the_head_is_measured_at_its_own_rate() -> None:
    step = step_of("--head_learning_rate", "0.5", "--learning_rate", "0")
    assert [group["lr"] for group in step.optimiser.param_groups] == [0.0, 0.5]
    fresh = step_of("--head_learning_rate", "0", "--learning_rate", "0").module.network.state_dict()
    moved = {
        name.split(".")[0]
        for name, value in step.module.network.state_dict().items()
        if not torch.equal(value, fresh[name])
    }
    assert moved == {"branch"}


@pytest.mark.flag("benchmark:task_balance")
def test_learned_weights_move_with_the_measured_steps() -> None:
    assert "balance" not in [group["part"] for group in step_of().optimiser.param_groups]
    weights = step_of("--task_balance").module.loss.task_weights()
    assert float(weights["segmentation"]) != 1.0
    assert float(weights["class"]) != pytest.approx(0.3, abs=1e-6)
