"""Copies that fill a batch count neither in the epoch's losses nor in its patches, on one rank or on two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_loading.loader import _assemble
from tests.nnunet.training.counted_run import CountedRun, run_epoch

ROOT = Path(__file__).resolve().parents[3]


def mean_by_count(counted: list[int], losses: list[float]) -> float:
    return sum(n * loss for n, loss in zip(counted, losses, strict=True)) / sum(counted)


def patches_of(reported: dict[str, Any]) -> float:
    return reported["speed/patches_per_s"] * reported["train_s"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[CountedRun]:
    """Two processes: 3 cases of 2 batches count on the first, 2 on the second, whose last batch is copies."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = []
    for rank, counted in enumerate((["2", "1"], ["2", "0"])):
        (folder / str(rank)).mkdir()
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
        command = [sys.executable, "-m", "tests.nnunet.training.counted_run"]
        command += [str(folder / str(rank)), str(folder / "meeting_point"), *counted]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | world))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [CountedRun(**json.loads((folder / str(rank) / "run.json").read_text())) for rank in range(2)]


def test_the_loader_counts_the_weights_above_zero() -> None:
    entry: Any = SimpleNamespace(case=SimpleNamespace(case_id="a", class_target=0))
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    batch = _assemble([entry], torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1), (), weights)
    assert batch.num_counted == 2


def test_copies_do_not_pull_the_mean_loss_towards_zero(tmp_path: Path) -> None:
    run = run_epoch([2, 1, 0], tmp_path)
    assert run.losses[2] == 0
    assert run.reported["train/loss"] == pytest.approx(mean_by_count([2, 1, 0], run.losses), rel=1e-5)


def test_copies_are_no_patches(tmp_path: Path) -> None:
    assert patches_of(run_epoch([2, 1, 0], tmp_path).reported) == pytest.approx(3)


@pytest.mark.story
def test_the_mean_loss_is_that_of_the_cases_of_all_ranks(two_ranks: list[CountedRun]) -> None:
    expected = mean_by_count([2, 1, 2, 0], [*two_ranks[0].losses, *two_ranks[1].losses])
    for run in two_ranks:
        assert run.reported["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.story
def test_the_patches_of_all_ranks_are_counted(two_ranks: list[CountedRun]) -> None:
    assert [patches_of(run.reported) for run in two_ranks] == pytest.approx([5, 5])
