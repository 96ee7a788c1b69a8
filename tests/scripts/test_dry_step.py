"""The search for what fits, and the memory of steps: by made limits, and measured on this machine."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from data_loading.loader import Shard
from scripts import dry_step, step_memory
from scripts.dry_step import Attempt, Fitted, StepSize, fullest, largest_fit
from scripts.fold_data import FoldCases
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from scripts.step_memory import HostGauge, StepMemory, measure_step
from utils.contracts import Plan
from utils.errors import EnvironmentFault

MakePlan = Callable[..., Plan]
MEMORY = StepMemory(device="made", total=100, free=90, peak=80)
CPU = Shard(on_host=True)


def room_for(voxels: int, tried: list[tuple[int, int]] | None = None) -> Attempt:
    """A device that holds so many voxels of a batch; `tried` takes what was asked for."""

    def attempt(plan: Plan, batch_size: int) -> StepMemory | None:
        if tried is not None:
            tried.append((batch_size, prod(plan.patch)))
        return MEMORY if batch_size * prod(plan.patch) <= voxels else None

    return attempt


def test_what_fits_is_tried_once_and_stays(make_plan: MakePlan) -> None:
    tried: list[tuple[int, int]] = []
    found = largest_fit(make_plan(), 7, room_for(10**9, tried))
    assert (found.plan, found.batch_size, tried) == (make_plan(), 7, [(7, 4 * 16 * 16)])


@pytest.mark.parametrize("batch_size", [3, 9, 366])
@pytest.mark.parametrize("holds", [2, 3, 7, 8, 200, 365])
def test_the_batch_becomes_the_largest_that_fits(make_plan: MakePlan, batch_size: int, holds: int) -> None:
    tried: list[tuple[int, int]] = []
    found = largest_fit(make_plan(), batch_size, room_for(holds * 4 * 16 * 16, tried))
    assert (found.plan.patch, found.batch_size) == ((4, 16, 16), min(batch_size, holds))
    assert len(tried) <= 1 + np.ceil(np.log2(batch_size))


@pytest.mark.parametrize(("runs", "least"), [(3, 3), (4, 4), (1, 2)])
def test_a_batch_of_runs_of_slices_stays_a_multiple_of_them(
    make_plan: MakePlan, runs: int, least: int
) -> None:
    plan = make_plan(flat=True)
    for holds in range(least, 12):
        found = largest_fit(plan, 12, room_for(holds * 16 * 16), runs=runs)
        assert (found.batch_size, found.plan.patch) == (holds - holds % runs, plan.patch)


@pytest.mark.parametrize(("batch_size", "least"), [(9, 2), (2, 2), (1, 1)])
def test_the_patch_gets_shorter_where_the_smallest_batch_does_not_fit(
    make_plan: MakePlan, batch_size: int, least: int
) -> None:
    plan = make_plan(patch=(32, 64, 64), median_shape=(32, 64, 64))
    found = largest_fit(plan, batch_size, room_for(least * 32 * 64 * 64 - 1))
    assert found.batch_size == least
    assert prod(found.plan.patch) < 32 * 64 * 64
    # No shorter than necessary: one step back is too much.
    assert largest_fit(plan, batch_size, room_for(least * prod(found.plan.patch))).plan == found.plan


def test_where_nothing_fits_the_person_is_told_what_was_tried(make_plan: MakePlan) -> None:
    with pytest.raises(EnvironmentFault, match=r"Not even a batch of 2 patches of \d+x\d+x\d+ voxels fits"):
        largest_fit(make_plan(), 4, room_for(0))


def test_one_process_without_room_decides_for_all() -> None:
    fuller = replace(MEMORY, peak=85)
    assert fullest([MEMORY, fuller]) == fuller
    assert fullest([MEMORY, None, fuller]) is None
    # The smaller device has less left over, although it is asked for less.
    small = replace(MEMORY, free=40, peak=39)
    assert fullest([fuller, small]) == small


@pytest.mark.parametrize(
    ("changes", "command", "choice"),
    [
        ({"planner": "resenc_l", "encoder": "residual"}, "3d_fullres --planner resenc_l", "--plan smaller"),
        ({"preset": "nvidia"}, "3d_fullres --preset nvidia", "--plan smaller"),
        ({"resampling": "torch"}, "3d_fullres --resampling torch", "--plan smaller"),
        ({"configuration": "3d_lowres"}, "3d_lowres", "--data made/04_3d --plan smaller"),
        (
            {"configuration": "3d_cascade_fullres", "prior_labels": 2},
            "3d_fullres",
            "scripts/cascade.py --plan smaller",
        ),
    ],
)
def test_how_to_keep_a_smaller_patch_names_the_planner_and_the_configuration(
    make_plan: MakePlan, changes: dict[str, Any], command: str, choice: str
) -> None:
    fold = replace(fold_of(make_plan(**changes)), folder=Path("made/04_3d"))
    asked, used = (StepSize(batch_size=2, patch=patch) for patch in ((8, 16, 16), (4, 16, 16)))
    fitted = Fitted(options=options_of("--task", "4"), fold=fold, asked=asked, used=used, memory=MEMORY)
    _, line = dry_step._lines(fitted, was_lowered=True)
    start = "To make that permanent: python preprocess.py --data RAW --results made --task 4 --configuration"
    size = "--plan_name smaller --patch_size 4 16 16"
    assert line.endswith(f"{start} {command} {size}, then {choice} --batch_size 2.")


# --- measured ----------------------------------------------------------------------------------------------


def options_of(*words: str) -> RunOptions:
    return read_command(["--device", "cpu", *words], program="main.py", description="").options


def fold_of(plan: Plan) -> FoldCases:
    return FoldCases(folder=Path("made"), plan=plan, training=(), validation=(), folds=())


@pytest.fixture
def counted() -> None:
    """Skips where the system does not count a peak anew."""
    gauge = HostGauge()
    gauge.start()
    if gauge.peak() is None:
        pytest.skip("this system counts no peak of resident memory anew")


@pytest.mark.usefixtures("counted")
def test_the_gauge_sees_what_was_held_for_a_moment_and_forgets_what_was_before() -> None:
    def hold() -> None:
        np.ones(64 * 2**20, np.uint8)

    hold()
    gauge = HostGauge()
    memory = gauge.start()
    assert (gauge.peak() or 0) < 16 * 2**20
    hold()
    assert 60 * 2**20 < (gauge.peak() or 0) < 96 * 2**20
    assert memory.total is not None
    assert memory.free is not None
    assert memory.total >= memory.free


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("words", [(), ("--amp", "--layout", "NDHWC", "--ema", "0.9", "--optimizer", "sgd")])
def test_a_step_with_more_patches_needs_more(make_plan: MakePlan, words: tuple[str, ...]) -> None:
    plan = make_plan(patch=(16, 64, 64), prior_labels=2)
    few, many = (
        measure_step(options_of("--no_class_balance", *words), fold_of(plan), size, CPU) for size in (1, 12)
    )
    assert few is not None
    assert many is not None
    # At least the output of the first convolution of each further patch, and not the batches of the data set.
    assert (many.peak or 0) - (few.peak or 0) > 11 * 4 * 16 * 64 * 64 * (2 if "--amp" in words else 4)
    assert (many.peak or 0) < 10**9


def test_no_random_number_of_the_run_is_drawn(make_plan: MakePlan) -> None:
    def numbers() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.rand(3).tolist()]  # noqa: NPY002 - the global one is meant

    options = options_of("--no_class_balance", "--branch", "roi_pooled:dropout=0.5")
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = numbers()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert measure_step(options, fold_of(make_plan()), 2, CPU) is not None
    assert numbers() == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("made"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    ],
)
def test_out_of_memory_is_an_answer(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(step_memory, "take_steps", fail)
    assert measure_step(options_of(), fold_of(make_plan()), 2, CPU) is None


def test_another_fault_of_a_step_is_not_taken_for_one_of_memory(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(step_memory, "take_steps", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        measure_step(options_of(), fold_of(make_plan()), 2, CPU)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_gpus_libraries_have_words_of_their_own_for_out_of_memory(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, on_gpu: bool
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("FIND was unable to find an engine to execute this computation")

    monkeypatch.setattr(step_memory, "take_steps", fail)
    if on_gpu:
        assert not step_memory._has_room(options_of(), fold_of(make_plan()), 2, Shard(device_id=0))
        assert "unable to find an engine" in capsys.readouterr().err
        return
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        measure_step(options_of(), fold_of(make_plan()), 2, CPU)


def test_no_process_waits_for_another_in_the_middle_of_a_step(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduce(*_: Any, **__: Any) -> None:
        raise AssertionError("another process is asked")

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(distributed, "all_reduce", reduce)
        monkeypatch.setattr("torch.distributed.nn.functional.all_reduce", reduce)
        fold = fold_of(replace(make_plan(), batch_dice=True))
        options = options_of("--no_class_balance", "--branch", "roi_pooled")
        with pytest.raises(AssertionError, match="another process is asked"):
            step_memory.take_steps(options, fold, 2, CPU)
        assert measure_step(options, fold, 2, CPU) is not None
    finally:
        distributed.destroy_process_group()
