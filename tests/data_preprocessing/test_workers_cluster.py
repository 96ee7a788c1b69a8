"""Cases prepared by the workers of a Dask cluster, one of which is killed on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_preprocessing import workers
from data_preprocessing.phantom import PhantomOptions, write_phantom
from scripts import preprocess
from utils.errors import EnvironmentFault
from utils.options import parse
from utils.prepared_folder import list_prepared
from utils.storage import read_json

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.story


class KillOneWorker(distributed.WorkerPlugin):
    """Kills the first worker that sees a volume in the folder, whatever it works on; once."""

    def __init__(self, folder: Path, mark: Path) -> None:
        self.folder, self.mark = folder, mark

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not any(self.folder.glob("*_x.npy")):
            time.sleep(0.001)
        try:
            mark = os.open(self.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        os.write(mark, str(len(list(self.folder.glob("*_fg.npy")))).encode())
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**settings, local_directory=str(tmp_path / "dask")) as cluster:
        yield cluster


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_phantom(tmp_path / "raw", PhantomOptions(size="tiny", num_train=24, n_jobs=1)).parent


def prepare(raw: Path, results: Path, *flags: str) -> Path:
    words = ["--data", str(raw), "--results", str(results), "--task", "500", "--n_jobs", "1", *flags]
    return preprocess.run(parse(preprocess.PreprocessOptions, words, program="preprocess.py", description=""))


def test_a_killed_worker_costs_no_case(cluster: Any, raw: Path, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    with distributed.Client(cluster) as client:
        client.register_plugin(KillOneWorker(tmp_path / "cluster" / "500_3d", mark))
        there = prepare(raw, tmp_path / "cluster", "--cluster", cluster.scheduler_address)
    here = prepare(raw, tmp_path / "alone")
    num_cases = len(list_prepared(here))
    assert int(mark.read_text()) < num_cases == 27  # killed while there was work left
    assert [case.case_id for case in list_prepared(there)] == [case.case_id for case in list_prepared(here)]
    arrays = sorted(path.name for path in here.glob("*.npy"))
    assert arrays == sorted(path.name for path in there.glob("*.npy"))
    for name in arrays:
        np.testing.assert_array_equal(np.load(there / name), np.load(here / name))
    for name in ("plan.json", "fingerprint.json"):
        assert read_json(there / name) == read_json(here / name)


def test_workers_that_lack_the_project_are_told_how_to_start(
    cluster: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "__name__", "no_such_project")
    with pytest.raises(EnvironmentFault, match=r"cannot import no_such_project\. .*PYTHONPATH="):
        prepare(raw, tmp_path / "cluster", "--cluster", cluster.scheduler_address)


def test_an_address_where_nobody_answers_is_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    with pytest.raises(
        EnvironmentFault, match=r"No Dask scheduler answers at --cluster tcp://127\.0\.0\.1:9"
    ):
        prepare(raw, tmp_path / "cluster", "--cluster", "tcp://127.0.0.1:9")


def test_the_missing_package_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(EnvironmentFault, match="pip install distributed"):
        prepare(raw, tmp_path / "cluster", "--cluster", "tcp://127.0.0.1:8786")
