"""Cases prepared by the workers of a Dask cluster, one of which is killed on the way."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from joblib import delayed

from data_preprocessing import cluster
from data_preprocessing.phantom import PhantomOptions, write_phantom
from scripts import preprocess
from utils.errors import EnvironmentFault
from utils.options import parse
from utils.prepared_folder import list_prepared
from utils.storage import read_json

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
NUM_CASES = 27


@dataclass(frozen=True, kw_only=True)
class Farm:
    """A scheduler and two workers, each a process that was started by a command."""

    address: str
    doomed: subprocess.Popen[bytes]

    def names(self) -> dict[str, str]:
        """Name of each worker, by its address."""
        with distributed.Client(self.address) as client:
            client.wait_for_workers(2, timeout=START_SECONDS)
            workers = client.scheduler_info(n_workers=-1)["workers"]
            return {address: worker["name"] for address, worker in workers.items()}


@contextmanager
def started(folder: Path, *words: str, path: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`dask ...` as a process that knows no other project than that of `path`."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    with (folder / "dask.log").open("ab") as log:
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    folder = tmp_path / "farm"
    folder.mkdir()
    contact = folder / "scheduler.json"
    local = ["--host", "127.0.0.1"]
    with started(folder, "scheduler", "--port", "0", "--scheduler-file", str(contact), *local):
        give_up = time.monotonic() + START_SECONDS
        while not contact.is_file() or not contact.read_text().endswith("}"):
            assert time.monotonic() < give_up, (folder / "dask.log").read_text()
            time.sleep(0.05)
        address = json.loads(contact.read_text())["address"]
        worker = ["worker", address, "--nthreads", "1", "--local-directory", str(folder), *local, "--name"]
        with (
            started(folder, *worker, "steady", path=str(ROOT)),
            started(folder, *worker, "doomed", "--no-nanny", path=str(ROOT)) as doomed,
        ):
            yield Farm(address=address, doomed=doomed)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_phantom(tmp_path / "raw", PhantomOptions(size="tiny", num_train=24, n_jobs=1)).parent


def prepare(raw: Path, results: Path, *flags: str) -> Path:
    words = ["--data", str(raw), "--results", str(results), "--task", "500", "--n_jobs", "1", *flags]
    return preprocess.run(parse(preprocess.PreprocessOptions, words, program="preprocess.py", description=""))


def kill_at_first_volume(process: subprocess.Popen[bytes], folder: Path, seen: list[int]) -> None:
    """Kill `process` when the first volume is in `folder`, and note how many cases were complete by then."""
    while not any(folder.glob("*_x.npy")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    seen.append(len(list_prepared(folder)))


@pytest.mark.flag("preprocess:cluster")
def test_workers_started_by_command_prepare_all_cases_though_one_is_killed(
    farm: Farm, raw: Path, tmp_path: Path
) -> None:
    names, complete = farm.names(), []
    place = tmp_path / "cluster" / "500_3d"
    killer = threading.Thread(target=kill_at_first_volume, args=(farm.doomed, place, complete), daemon=True)
    with distributed.Client(farm.address) as client, distributed.get_task_stream(client=client) as stream:
        killer.start()
        there = prepare(raw, tmp_path / "cluster", "--cluster", farm.address)
        killer.join()
    here = prepare(raw, tmp_path / "alone")

    tasks = {(names[task["worker"]], task["key"].split("-")[0]) for task in stream.data}
    assert {("doomed", "survey_case"), ("steady", "survey_case"), ("steady", "prepare_and_write")} <= tasks
    assert complete[0] < NUM_CASES == len(list_prepared(here))  # killed while there was work left
    assert [case.case_id for case in list_prepared(there)] == [case.case_id for case in list_prepared(here)]
    arrays = sorted(path.name for path in here.glob("*.npy"))
    assert arrays == sorted(path.name for path in there.glob("*.npy"))
    for name in arrays:
        np.testing.assert_array_equal(np.load(there / name), np.load(here / name))
    for name in ("plan.json", "fingerprint.json"):
        assert read_json(there / name) == read_json(here / name)


def test_a_cluster_whose_workers_are_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    settings = {"processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=0, **settings) as empty,
        distributed.Client(empty) as client,
        pytest.raises(EnvironmentFault, match=r"No worker of .* is left\. Start some.*dask worker"),
    ):
        list(cluster.results_of(client, [delayed(abs)(-1)]))


@pytest.fixture
def local() -> Iterator[str]:
    """The address of a cluster whose one worker lives in this process."""
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp://", **settings) as cluster:
        yield cluster.scheduler_address


def test_workers_that_lack_the_project_are_told_how_to_start(
    local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WORK", "no_such_project")
    with (
        pytest.raises(EnvironmentFault, match=r"cannot import no_such_project\. .*PYTHONPATH="),
        cluster.connected(local),
    ):
        pass


def test_a_call_that_a_worker_cannot_import_tells_how_to_start(local: str) -> None:
    with (
        cluster.connected(local) as client,
        pytest.raises(EnvironmentFault, match=r"cannot import no_such_project\. .*PYTHONPATH="),
    ):
        list(cluster.results_of(client, [delayed(__import__)("no_such_project")]))


def test_a_scheduler_that_dies_ends_the_run() -> None:
    settings = {"n_workers": 0, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(protocol="tcp://", **settings) as empty,
        distributed.Client(empty.scheduler_address) as client,
    ):
        threading.Timer(0.3, empty.close).start()
        with pytest.raises(EnvironmentFault, match="gave up a task"):
            list(cluster.results_of(client, [delayed(abs)(-1)]))


def test_an_address_where_nobody_answers_is_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(
        EnvironmentFault, match=r"No Dask scheduler answers at --cluster tcp://127\.0\.0\.1:9"
    ):
        prepare(raw, tmp_path / "cluster", "--cluster", "tcp://127.0.0.1:9")


def test_the_missing_package_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(EnvironmentFault, match="pip install distributed"):
        prepare(raw, tmp_path / "cluster", "--cluster", "tcp://127.0.0.1:8786")
