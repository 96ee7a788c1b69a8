"""The memory of training steps as a GPU counts it, and steps that really run out of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data_loading.loader import Shard
from data_preprocessing.phantom import PhantomOptions, write_phantom
from scripts import preprocess, train
from scripts.dry_step import largest_fit
from scripts.fold_data import FoldCases
from scripts.run_recipes import read_command
from scripts.step_memory import StepMemory, measure_step
from tests.stories.conftest import TASK, shrink_plan
from utils.contracts import Plan
from utils.options import parse
from utils.run_log import read_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
MakePlan = Callable[..., Plan]
GPU = Shard(device_id=0)
PATCH = (16, 64, 64)


def measure(plan: Plan, batch_size: int, *words: str) -> StepMemory | None:
    options = read_command(["--no_class_balance", *words], program="main.py", description="").options
    fold = FoldCases(folder=Path("made"), plan=plan, training=(), validation=(), folds=())
    return measure_step(options, fold, batch_size, GPU)


@pytest.fixture
def small_share() -> Iterator[int]:
    """A limit for this process, in bytes, far below what the GPU has."""
    total, limit = torch.cuda.mem_get_info()[1], 300 * 2**20
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / total)
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("words", [(), ("--amp",), ("--amp", "--layout", "NDHWC")])
def test_more_patches_need_more_memory_and_all_of_it_is_given_back(
    make_plan: MakePlan, words: tuple[str, ...]
) -> None:
    measure(make_plan(patch=PATCH), 1, *words)  # libraries keep workspaces from their first use on
    before = torch.cuda.memory_allocated()
    few, many = (measure(make_plan(patch=PATCH), size, *words) for size in (2, 64))
    assert few is not None
    assert many is not None
    assert few.device == torch.cuda.get_device_name()
    image = 4 * 16 * 64 * 64  # bytes of one channel
    # At least the input and the first map of each patch; at most a hundred maps of full size.
    assert 62 * 3 * image < (many.peak or 0) - (few.peak or 0) < 62 * 100 * image
    assert torch.cuda.memory_allocated() == before


def test_a_batch_is_lowered_to_what_the_allocator_may_take(make_plan: MakePlan, small_share: int) -> None:
    plan = make_plan(patch=PATCH)
    assert measure(plan, 512) is None
    found = largest_fit(plan, 512, measure)
    assert 2 <= found.batch_size < 512
    assert 0.5 * small_share < (found.memory.peak or 0) <= small_share
    # Nothing of the steps that failed is left.
    assert measure(plan, found.batch_size) is not None


@pytest.mark.flag("dry_step")
@pytest.mark.story
def test_a_gpu_has_its_dry_step_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_phantom(tmp_path / "raw", PhantomOptions(size="tiny", n_jobs=1))
    folders = ["--data", str(raw.parent), "--results", str(tmp_path), "--task", TASK, "--n_jobs", "1"]
    options = parse(preprocess.PreprocessOptions, folders, program="preprocess.py", description="")
    shrink_plan(preprocess.run(options), 3)
    words = ["--data", str(tmp_path), "--results", str(tmp_path / "run"), "--task", TASK, "--epochs", "1"]
    words += ["--fit_classifier", "none"]
    train.run(read_command(words, program="main.py", description="").options)
    assert "Memory of a training step, batch 2 of 8x16x16: estimated" in capsys.readouterr().err
    lines = [line["data"] for line in read_log(tmp_path / "run" / "logs.json") if line["type"] == "LOG"]
    memory = next(line["step_memory"] for line in lines if "step_memory" in line)
    assert 0 < memory["peak"] < memory["free"] <= memory["total"]
