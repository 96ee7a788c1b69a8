"""A phantom, prepared once, with a network small enough to train in a second."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_preprocessing import workers
from data_preprocessing.phantom import PhantomOptions, write_phantom
from scripts import preprocess, train
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.options import parse
from utils.prepared_folder import PLAN, read_plan
from utils.storage import write_json

TASK = "500"
FEW_CHANNELS = 8
SMALL_PATCH = {2: (1, 16, 16), 3: (8, 16, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """The raw dataset, and the folder that holds its prepared folders."""

    raw: Path
    prepared: Path


def shrink_plan(folder: Path, dim: int) -> None:
    """Edit the plan as a user may: fewer channels and a smaller patch."""
    plan = read_plan(folder)
    stages = tuple(replace(stage, channels=FEW_CHANNELS) for stage in plan.stages[:3])
    write_json(folder / PLAN, replace(plan, stages=stages, patch=SMALL_PATCH[dim], batch_size=2))


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intensities of a made dataset need no hundred million draws."""
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 3000 // num_cases)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """Nine training, three validation and two test cases of about 16x32x32 voxels."""
    root = tmp_path_factory.mktemp("phantom")
    raw = write_phantom(root / "raw", PhantomOptions(size="tiny", n_jobs=1))
    for dim in (3, 2):
        words = ["--data", str(raw.parent), "--results", str(root / "prepared"), "--task", TASK]
        words += ["--dim", str(dim), "--n_jobs", "1"]
        options = parse(preprocess.PreprocessOptions, words, program="preprocess.py", description="")
        shrink_plan(preprocess.run(options), dim)
        preprocess.run(options)  # a plan edited by hand is honoured
    return Phantom(raw=raw, prepared=root / "prepared")


@pytest.fixture(scope="session")
def run_options(phantom: Phantom) -> Callable[..., RunOptions]:
    """The options of main.py for a short run on the CPU, with further flags behind."""

    def make(results: Path, *flags: str) -> RunOptions:
        words = ["--data", str(phantom.prepared), "--results", str(results), "--task", TASK]
        words += ["--device", "cpu", "--epochs", "2", "--steps_per_epoch", "2", "--num_workers", "1"]
        words += ["--deep_supervision", "--overlap", "0"]
        return read_command([*words, *flags], program="main.py", description="").options

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, run_options: Callable[..., RunOptions]) -> Path:
    """The results of a finished run of two epochs."""
    results = tmp_path_factory.mktemp("trained")
    train.run(run_options(results, "--npz"))
    return results
