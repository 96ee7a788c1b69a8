"""Options of scripts/benchmark.py about loading, seen in what its loader delivers; and several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from scripts import benchmark
from scripts.benchmark_loader import plan_of_work
from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_record import LoaderRecord
from scripts.benchmark_refusals import refuse_impossible
from scripts.benchmark_result import PredictRecord, TrainRecord, check_result
from scripts.run_benchmark import run as run_from_main
from scripts.run_recipes import read_command
from utils.contracts import Batch
from utils.errors import EnvironmentFault, UserError
from utils.options import parse
from utils.storage import read_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("--warmup", "1", "--train_batches", "2", "--repeats", "2")


def options_of(phantom: Any, *flags: str) -> BenchmarkOptions:
    words = [
        "--data",
        str(phantom.prepared),
        "--task",
        "500",
        "--device",
        "cpu",
        "--num_workers",
        "1",
        *COUNTS,
    ]
    found = parse(BenchmarkOptions, [*words, *flags], program="benchmark.py", description="")
    refuse_impossible(found)
    return found


def delivered(phantom: Any, *flags: str) -> list[Batch]:
    """Three batches."""
    loader = plan_of_work(options_of(phantom, *flags)).loader()
    try:
        batches = iter(loader)
        return [next(batches) for _ in range(3)]
    finally:
        loader.close()


@pytest.mark.parametrize(
    ("base", "words"),
    [
        pytest.param(base, (f"--{name}", *words), id=name, marks=pytest.mark.flag(f"benchmark:{name}"))
        for name, words, base in (
            ("oversampling", ("1",), ("--oversampling", "0")),
            ("lesion_centred", ("1",), ("--oversampling", "1")),
            ("augment", ("none",), ()),
            ("seed", ("2",), ()),
            ("nvol", ("2",), ("--dim", "2", "--batch_size", "4")),
        )
    ],
)
def test_the_option_changes_the_patches(phantom, base: tuple[str, ...], words: tuple[str, ...]) -> None:
    plain, changed = (delivered(phantom, *base, *more) for more in ((), words))
    assert any(
        one.image.shape != other.image.shape or not torch.equal(one.image, other.image)
        for one, other in zip(plain, changed, strict=True)
    )


@pytest.mark.flag("benchmark:batch_size", "benchmark:layout")
def test_a_batch_has_the_asked_size_and_order_of_axes(phantom) -> None:
    image = delivered(phantom, "--batch_size", "3", "--layout", "NDHWC", "--aug", "none")[0].image
    assert image.shape == (3, 1, 8, 16, 16)
    assert image.stride()[1] == 1


@pytest.mark.flag("benchmark:balance_classes")
def test_classes_can_be_drawn_evenly(phantom) -> None:
    plain, even = (plan_of_work(options_of(phantom, *more)) for more in ((), ("--balance_classes",)))
    assert (len(plain.rule.case_limits), len(even.rule.case_limits)) == (0, len(even.entries))


@pytest.mark.flag("benchmark:data2d_dim")
def test_volumes_are_not_taken_for_plain_images(phantom) -> None:
    with pytest.raises(UserError, match="2-D"):
        plan_of_work(options_of(phantom, "--data2d_dim", "2"))


@pytest.mark.flag(
    "benchmark:augment_in", "benchmark:residency", "benchmark:num_workers", "benchmark:prefetch"
)
def test_the_record_says_where_and_how_patches_were_made(phantom) -> None:
    words = ("--augment_in", "graph", "--residency", "disk", "--num_workers", "1", "--prefetch", "3")
    record = benchmark.run(options_of(phantom, "--aug", "noise", *words))
    assert isinstance(record, LoaderRecord)
    found = record.settings
    assert (found.augment_in, found.in_memory, found.num_workers, found.prefetch) == ("graph", False, 1, 3)
    usual = plan_of_work(options_of(phantom, "--num_workers", "2"))
    assert (usual.shard.on_host, usual.shard.in_memory, usual.shard.prefetch) == (True, True, 2)
    assert usual.shard.num_threads == min(2, os.cpu_count() or 1)


# --- several processes -------------------------------------------------------------------------------------


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def started(words: list[str], variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"OMP_NUM_THREADS": "1", **(variables or {})}
    return subprocess.Popen(
        [sys.executable, *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(processes: list[subprocess.Popen[str]]) -> str:
    """What all of them printed on standard output."""
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return "".join(out for out, _ in said)


def script(phantom, mode: str, *flags: str) -> list[str]:
    words = [str(ROOT / "scripts" / "benchmark.py"), "--mode", mode, "--data", str(phantom.prepared)]
    words += ["--task", "500", "--device", "cpu", "--num_workers", "1", "--json", *COUNTS, *flags]
    return words


@pytest.mark.flag("benchmark:gpus")
def test_two_processes_train_together_and_one_reports(phantom, tmp_path: Path) -> None:
    words = script(phantom, "train", "--gpus", "2", "--results", str(tmp_path))
    (line,) = finished([started(words)]).splitlines()
    record = check_result(json.loads(line), source="standard output")
    assert isinstance(record, TrainRecord)
    assert record == check_result(read_json(tmp_path / "benchmark_train.json"), source="the file")
    assert record.settings.processes == 2
    # Both patches of a step count, by the clock of the slower process.
    per_step = 2 * record.settings.batch_size
    seconds_per_step = mean(per_step / rate for rate in record.patches_per_s.repeats)
    assert record.ms_per_step.mean / 1e3 == pytest.approx(seconds_per_step, rel=0.1)
    assert record.nvidia.throughput_train == pytest.approx(
        per_step / record.nvidia.latency_train_mean * 1e3, rel=1e-6
    )
    logs = (tmp_path / "perf.json").read_text().splitlines()
    assert sum('"PARAMETER"' in log for log in logs) == 1


@pytest.mark.flag("benchmark:gpus")
def test_torchrun_starts_predictions_each_of_which_has_its_own_share(phantom) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    words = script(
        phantom, "predict", "--gpus", "2", "--volumes", "2", "--overlap", "0", "--test_batches", "2"
    )
    (line,) = finished([started([*launcher, *words])]).splitlines()
    record = check_result(json.loads(line), source="standard output")
    assert isinstance(record, PredictRecord)
    assert record.settings.processes == 2
    assert [speed.volumes for speed in record.whole_volumes] == [4, 4]


@pytest.mark.flag("benchmark:nodes")
def test_two_nodes_load_together(phantom) -> None:
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = script(phantom, "loader", "--nodes", "2", "--aug", "none")
    (line,) = finished([started(words, common | {"NODE_RANK": rank}) for rank in "01"]).splitlines()
    record = check_result(json.loads(line), source="standard output")
    assert isinstance(record, LoaderRecord)
    assert record.settings.processes == 2


def test_a_launcher_with_another_number_of_processes_is_refused(phantom) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "TORCHELASTIC_RUN_ID": "1",
            "WORLD_SIZE": "3",
            "RANK": "0",
            "LOCAL_RANK": "0",
        }.items():
            patch.setenv(name, value)
        with pytest.raises(EnvironmentFault, match="3 processes were started"):
            benchmark.run(options_of(phantom, "--gpus", "2"))


# --- main.py --benchmark -----------------------------------------------------------------------------------


@pytest.mark.flag("benchmark", "warmup", "train_batches", "test_batches")
@pytest.mark.parametrize("mode", ["train", "predict"])
def test_a_run_measures_instead_of_training_or_predicting(phantom, mode: str, tmp_path: Path) -> None:
    words = ["--exec_mode", mode, "--benchmark", "--data", str(phantom.prepared), "--task", "500"]
    words += ["--results", str(tmp_path), "--device", "cpu", "--num_workers", "1", "--warmup", "1"]
    words += ["--train_batches", "3", "--test_batches", "3", "--batch_size", "2"]
    run_from_main(read_command(words, program="main.py", description="").options)
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark_{mode}.json", "perf.json"}
    record = check_result(read_json(tmp_path / f"benchmark_{mode}.json"), source="the file")
    assert isinstance(record, TrainRecord | PredictRecord)
    assert len(record.patches_per_s.repeats) == 1
    assert record.options["warmup"] == 1
    assert (record.settings.input, record.settings.batch_size) == ("real", 2)
