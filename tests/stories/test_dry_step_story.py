"""A dry step before training: what it tells, lowers and records, and that it changes nothing else."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from data_loading.loader import Shard
from nnunet.training.checkpoint import load_model, read_checkpoint
from scripts import step_memory, train
from scripts.fold_data import FoldCases
from scripts.run_options import RunOptions
from utils.errors import DatasetError, EnvironmentFault
from utils.prepared_folder import read_plan
from utils.run_log import read_log
from utils.storage import write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
Options = Callable[..., RunOptions]
SHORT = ["--epochs", "1", "--steps_per_epoch", "2", "--fit_classifier", "none", "--skip_first_n_eval", "9"]
PATCH = (8, 16, 16)  # of the phantom's plan


def last_of(results: Path) -> dict[str, Any]:
    return read_checkpoint(results / "checkpoints" / "last.ckpt")


def layout_of(results: Path) -> dict[str, Any]:
    """What the loader of the newest checkpoint delivers."""
    return last_of(results)["callbacks"]["Resumption"]["layout"]


def record_of(results: Path) -> dict[str, Any]:
    """The options that the newest run of the folder wrote down."""
    lines = [line["data"] for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return [line for line in lines if "resolved" in line][-1]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def device_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[tuple[int, int]]]:
    """Makes steps run out of memory with more than so many voxels; the list has what was tried."""

    def make(voxels: int) -> list[tuple[int, int]]:
        tried: list[tuple[int, int]] = []

        def take_steps(options: RunOptions, fold: FoldCases, batch_size: int, shard: Shard) -> None:  # noqa: ARG001
            tried.append((batch_size, prod(fold.plan.patch)))
            if batch_size * prod(fold.plan.patch) > voxels:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

        monkeypatch.setattr(step_memory, "take_steps", take_steps)
        return tried

    return make


@pytest.mark.flag("dry_step")
def test_training_is_equal_bit_by_bit_with_a_dry_step_and_without(
    run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("on", "off"):
        train.run(run_options(tmp_path / name, *SHORT, "--dry_step", name, "--batch_size", "3"))
        said = told(capsys)
        assert said.count("Memory of a training step, batch 3 of 8x16x16: estimated 0.0") == 1
        assert ("(planner); --dry_step on measures it." in said) is (name == "off")
    one, other = (last_of(tmp_path / name) for name in ("on", "off"))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert str(one["optimizer_states"]) == str(other["optimizer_states"])
    with_step, without = (record_of(tmp_path / name) for name in ("on", "off"))
    assert "step_memory" not in without
    memory = with_step["step_memory"]
    assert memory["asked"] == memory["used"] == {"batch_size": 3, "patch": list(PATCH)}
    assert 0 < memory["estimated_gb"] < 1
    assert memory["device"] == "this machine"
    assert "dry_step" not in with_step["resolved"]


@pytest.mark.flag("dry_step")
def test_auto_takes_none_on_the_cpu(
    run_options: Options,
    tmp_path: Path,
    device_for: Callable[[int], list[tuple[int, int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = device_for(0)
    train.run(run_options(tmp_path, *SHORT))
    assert tried == []
    assert "Memory of a training step, batch 2 of 8x16x16: estimated 0.0" in told(capsys)
    assert record_of(tmp_path)["resolved"]["dry_step"] == {"value": "off", "source": "device"}


@pytest.mark.flag("dry_step")
def test_a_batch_that_does_not_fit_is_lowered_told_recorded_and_resumed(
    run_options: Options,
    tmp_path: Path,
    device_for: Callable[[int], list[tuple[int, int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = device_for(4 * prod(PATCH))
    flags = [*SHORT, "--dry_step", "on", "--batch_size", "7"]
    train.run(run_options(tmp_path, *flags))
    assert [size for size, _ in tried] == [7, 4, 6, 5]
    text = told(capsys)
    assert "Out of memory with batch 7 of 8x16x16: training goes on with batch 4 of 8x16x16 instead." in text
    assert 'To make that permanent: --batch_size 4, or "batch_size": 4 in the plan.' in text
    record = record_of(tmp_path)
    assert record["batch_size"] == 7  # as given
    assert record["resolved"]["batch_size"] == {"value": 4, "source": "dry step"}
    assert record["step_memory"]["asked"]["batch_size"] == 7
    assert layout_of(tmp_path)["batch_size"] == 4

    # A resume has the batch of the training that it goes on with, with another dry step or without.
    del tried[:]
    resumed = [*flags, "--resume_training", "--epochs", "2"]
    train.run(run_options(tmp_path, *resumed))
    assert [size for size, _ in tried] == [4]
    assert "instead. To make" not in told(capsys)
    train.run(run_options(tmp_path, *resumed, "--epochs", "3", "--dry_step", "off"))
    assert record_of(tmp_path)["resolved"]["batch_size"] == {"value": 4, "source": "dry step"}
    assert layout_of(tmp_path)["batch_size"] == 4
    # The lowered batch asked for by its name is no other training; another one is.
    train.run(run_options(tmp_path, *resumed, "--epochs", "4", "--batch_size", "4"))
    with pytest.raises(DatasetError, match="another plan.batch_size|loader had batch_size 4"):
        train.run(run_options(tmp_path, *resumed, "--epochs", "5", "--batch_size", "5", "--dry_step", "off"))


@pytest.mark.flag("dry_step")
def test_the_patch_is_lowered_where_the_smallest_batch_does_not_fit(
    phantom: "Phantom",
    run_options: Options,
    tmp_path: Path,
    device_for: Callable[[int], list[tuple[int, int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(phantom.prepared / "500_3d", tmp_path / "500_3d")
    large = (16, 32, 32)
    write_json(tmp_path / "500_3d" / "plan.json", replace(read_plan(tmp_path / "500_3d"), patch=large))
    device_for(2 * prod(large) - 1)
    flags = [*SHORT, "--data", str(tmp_path), "--dry_step", "on"]
    best = train.run(run_options(tmp_path / "run", *flags))
    plan = load_model(best, torch.device("cpu")).plan
    assert plan.patch == (16, 32, 28)
    text = told(capsys)
    assert "with batch 2 of 16x32x32: training goes on with batch 2 of 16x32x28 instead." in text
    assert (
        f"python preprocess.py --data RAW --results {tmp_path} --task 500 --configuration 3d_fullres "
        "--plan_name smaller --patch_size 16 32 28, then --plan smaller --batch_size 2" in text
    )
    resolved = record_of(tmp_path / "run")["resolved"]
    assert "batch_size" not in resolved or resolved["batch_size"]["source"] == "plan"
    assert resolved["patch"] == {"value": [16, 32, 28], "source": "dry step"}
    device_for(10**9)
    train.run(run_options(tmp_path / "run", *flags, "--resume_training", "--epochs", "2"))
    assert layout_of(tmp_path / "run")["patch"] == [16, 32, 28]


@pytest.mark.flag("dry_step")
def test_a_resume_that_does_not_fit_any_more_says_what_would(
    run_options: Options, tmp_path: Path, device_for: Callable[[int], list[tuple[int, int]]]
) -> None:
    flags = [*SHORT, "--batch_size", "3", "--dry_step"]
    train.run(run_options(tmp_path, *flags, "off"))
    device_for(2 * prod(PATCH))
    message = "has batch 3 of 8x16x16, more than this machine holds now; batch 2 of 8x16x16 would fit"
    with pytest.raises(EnvironmentFault, match=message):
        train.run(run_options(tmp_path, *flags, "on", "--resume_training", "--epochs", "2"))


@pytest.mark.flag("dry_step", "gpus")
def test_the_process_with_the_least_room_decides_for_all(phantom: "Phantom", tmp_path: Path) -> None:
    """Two processes started by Lightning; the device of the second holds three patches."""
    program = tmp_path / "run.py"
    program.write_text(
        f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from scripts import step_memory, train

def take_steps(options, fold, batch_size, shard):
    if shard.rank == 1 and batch_size > 3:
        raise torch.OutOfMemoryError("made")

step_memory.take_steps = take_steps
train.main()
"""
    )
    words = f"--data {phantom.prepared} --results {tmp_path / 'run'} --task 500 --device cpu --gpus 2"
    words += " --batch_size 6 --dry_step on --num_workers 1 --overlap 0"
    command = [sys.executable, str(program), *words.split(), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count("training goes on with batch 3 of 8x16x16 instead") == 1
    layout = layout_of(tmp_path / "run")
    assert (layout["batch_size"], layout["devices"]) == (3, 2)


def test_a_dry_step_costs_a_plan_nothing(run_options: Options, tmp_path: Path) -> None:
    """Whatever is tried, the prepared folder keeps its plan."""
    options = run_options(tmp_path, *SHORT)
    before = train.fold_of(options).plan
    train.run(replace(options, training=replace(options.training, dry_step="on")))
    assert train.fold_of(options).plan == before
