"""Training in several processes on the CPU: the same weights, one log, one report, and an exact resume."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from nnunet.training.checkpoint import read_checkpoint
from scripts import train
from scripts.run_options import RunOptions
from utils.run_log import read_log
from utils.storage import read_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("speed/", "epoch_s", "train_s")
SAMPLES_PER_STEP = 8  # over all processes; a batch of one would draw a random number more for its share
# Every sample is centred on foreground: the share is rounded per batch, and batches differ in size here.
# Plain SGD, because Adam's first steps are signs of gradients, which rounding may turn. Dropout, and whether
# the target guides the branch, is drawn per rank.
EQUAL = ["--oversampling", "1", "--optimizer", "sgd", "--branch", "roi_pooled:dropout=0,target_share=0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Starts main.py in `tasks` processes per node, through Lightning, torchrun, or as srun would."""

    data: Path
    tasks: int = 2
    nodes: int = 1

    def words(self, results: Path, *flags: str) -> list[str]:
        words = ["--exec_mode", "train", "--data", str(self.data), "--results", str(results), "--task", "500"]
        words += ["--device", "cpu", "--gpus", str(self.tasks), "--nodes", str(self.nodes)]
        words += ["--steps_per_epoch", "2", "--num_workers", "1", "--schedule", "constant", "--overlap", "0"]
        words += ["--epochs", "2", "--batch_size", str(SAMPLES_PER_STEP // (self.tasks * self.nodes))]
        return [*words, *EQUAL, *flags]

    def by_lightning(self, results: Path, *flags: str) -> str:
        return finish([start([str(ROOT / "main.py"), *self.words(results, *flags)])])

    def by_torchrun(self, results: Path, *flags: str) -> str:
        words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
        return finish([start([*words, str(ROOT / "main.py"), *self.words(results, *flags)])])

    def by_srun(self, results: Path, *flags: str) -> str:
        world_size = self.tasks * self.nodes
        common = {"SLURM_NTASKS": world_size, "SLURM_NTASKS_PER_NODE": self.tasks, "SLURM_NNODES": self.nodes}
        common |= {"SLURM_JOB_NAME": "train", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        places = [
            {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % self.tasks, "SLURM_NODEID": rank // self.tasks}
            for rank in range(world_size)
        ]
        words = [str(ROOT / "main.py"), *self.words(results, *flags)]
        return finish([start(words, common | place) for place in places])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(words: list[str], variables: dict[str, str | int] | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in (variables or {}).items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, **pipes)


def finish(processes: list[subprocess.Popen[str]]) -> str:
    try:
        texts = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(texts)
    return "\n".join(texts)


def weights_of(results: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(results / "checkpoints" / "last.ckpt")["state_dict"]


def logged(results: Path) -> list[dict[str, Any]]:
    lines = [line["data"] for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return [
        {name: value for name, value in line.items() if not name.startswith(MEASURED)}
        for line in lines
        if "train/loss" in line
    ]


@pytest.fixture(scope="module")
def launch(phantom: "Phantom") -> Launch:
    return Launch(data=phantom.prepared)


@pytest.fixture(scope="module")
def alone(run_options: Callable[..., RunOptions], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the same four samples per step."""
    results = tmp_path_factory.mktemp("alone")
    train.run(run_options(results, "--batch_size", str(SAMPLES_PER_STEP), *EQUAL))
    return results


@pytest.fixture(scope="module")
def two(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, started by Lightning."""
    results = tmp_path_factory.mktemp("two")
    launch.by_lightning(results)
    return results


@pytest.fixture(scope="module")
def four(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four processes on two nodes, started as srun would."""
    results = tmp_path_factory.mktemp("four")
    replace(launch, nodes=2).by_srun(results)
    return results


@pytest.fixture(params=["two", "four"])
def several(request: pytest.FixtureRequest) -> Path:
    """Two or four processes; of the three cases that are held out the second, or the fourth, has fewer."""
    return request.getfixturevalue(request.param)


@pytest.mark.flag("gpus")
@pytest.mark.flag("nodes")
@pytest.mark.flag("device")
def test_several_processes_end_with_the_weights_of_one(alone: Path, several: Path) -> None:
    ours, theirs = weights_of(several), weights_of(alone)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_several_processes_report_once_and_what_one_does(alone: Path, several: Path) -> None:
    steps = [line["step"] for line in read_log(several / "logs.json") if line["type"] == "LOG"]
    assert steps == ["PARAMETER", [0], [1], []]
    ours, theirs = logged(several), logged(alone)
    assert len(ours) == len(theirs) == 2
    for line, expected in zip(ours, theirs, strict=True):
        # Dice moves by whole voxels of a mask, the rest by rounding.
        assert line == {name: pytest.approx(value, rel=2e-3, abs=1e-6) for name, value in expected.items()}
    assert {path.name for path in several.iterdir()} == {path.name for path in alone.iterdir()}
    metrics, expected = (read_json(folder / "final_metrics.json") for folder in (several, alone))
    assert metrics["num_cases"] == expected["num_cases"] == 3
    assert metrics["dsc_mean"] == pytest.approx(expected["dsc_mean"], rel=2e-3)


def test_torchrun_and_srun_one_after_the_other_end_where_a_straight_run_does(
    launch: Launch, two: Path, tmp_path: Path
) -> None:
    launch.by_torchrun(tmp_path, "--epochs", "1")
    launch.by_srun(tmp_path, "--resume_training")
    ours, theirs = weights_of(tmp_path), weights_of(two)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["train/loss"] for line in logged(tmp_path)] == [line["train/loss"] for line in logged(two)]


@pytest.mark.flag("freeze", "task_balance")
def test_frozen_parts_and_learned_weights_need_no_single_process(
    launch: Launch, alone: Path, run_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    start = alone / "checkpoints" / "last.ckpt"
    flags = ["--ckpt_path", str(start), "--freeze", "encoder", "--task_balance", "--max_epochs", "1"]
    flags += ["--head_learning_rate", "0.05", "--fit_classifier", "none"]
    launch.by_lightning(tmp_path / "two", *flags)
    train.run(run_options(tmp_path / "one", "--batch_size", str(SAMPLES_PER_STEP), *EQUAL, *flags))
    ours, theirs, before = (weights_of(path) for path in (tmp_path / "two", tmp_path / "one", alone))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-5)
        if name.startswith("network.encoder."):
            assert torch.equal(ours[name], before[name])
    assert ours["loss.balance.raw"].tolist() == pytest.approx(theirs["loss.balance.raw"].tolist(), rel=1e-3)
