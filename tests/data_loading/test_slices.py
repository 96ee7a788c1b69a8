"""Slices drawn from volumes: each by itself, or in runs that share one draw (--nvol)."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_loading.catalogue import Entry, ForegroundTable
from data_loading.patches import (
    SamplingRule,
    Window,
    choose_case,
    draw_window,
    generator_for,
    steps_in_epoch,
    stream_index,
)
from utils.contracts import Shape
from utils.errors import UserError

RULE = SamplingRule(
    patch=(1, 6, 5), batch_size=2, world_size=1, steps_per_epoch=10, foreground_share=0.5, seed=1
)
RUNS = replace(RULE, batch_size=12, num_volumes=3)  # three runs of four slices


def entry_of(shape: Shape, *places: tuple[int, int, int, int]) -> Entry:
    """A case with the rows (label, d, h, w)."""
    rows = np.array(places, np.int32).reshape(-1, 4)
    labels, starts = np.unique(rows[:, 0], return_index=True)
    case: Any = SimpleNamespace(case_id="case")
    table = ForegroundTable(
        labels=tuple(labels.tolist()),
        starts=tuple(starts.tolist()),
        stops=(*starts[1:].tolist(), len(rows)) if len(rows) else (),
        positions=rows[:, 1:],
    )
    return Entry(case=case, shape=shape, image_type="float32", foreground=table)


def window_of(entries: list[Entry], rule: SamplingRule, index: int) -> Window:
    return draw_window(entries, rule, index, generator_for(3, stream_index(rule, index)))


def windows_of(entries: list[Entry], rule: SamplingRule, num_batches: int) -> list[list[Window]]:
    size = rule.batch_size
    return [
        [window_of(entries, rule, batch * size + place) for place in range(size)]
        for batch in range(num_batches)
    ]


def is_in(window: Window, voxel: tuple[int, ...]) -> bool:
    pairs = zip(voxel, window.start, window.shape, strict=True)
    return all(start <= place < start + size for place, start, size in pairs)


def test_a_forced_slice_shows_a_labelled_voxel() -> None:
    voxels = {1: (3, 0, 0), 2: (8, 19, 17)}
    entry = entry_of((9, 20, 18), (1, *voxels[1]), (2, *voxels[2]))
    shown = Counter()
    for batch in windows_of([entry], RULE, 400):
        labels = [label for label, voxel in voxels.items() if is_in(batch[1], voxel)]
        assert len(labels) == 1
        shown[labels[0]] += 1
    assert abs(shown[1] - 200) < 4 * np.sqrt(100)


def test_every_slice_is_reached_equally_often() -> None:
    rule = replace(RULE, foreground_share=0.0)
    drawn = [window_of([entry_of((10, 20, 18))], rule, index).start[0] for index in range(20_000)]
    count = np.bincount(drawn, minlength=10)
    assert len(count) == 10
    assert ((count - 2000) ** 2 / 2000).sum() < 41.0  # chi-square, 9 degrees of freedom, 1 in 200 000


def test_without_nvol_every_slice_has_its_own_stream() -> None:
    assert [stream_index(RULE, index) for index in range(6)] == [0, 1, 2, 3, 4, 5]


def test_the_slices_of_a_run_share_the_stream_of_the_first() -> None:
    assert [stream_index(RUNS, index) for index in range(16)] == [0] * 4 + [4] * 4 + [8] * 4 + [12] * 4


def test_a_run_is_neighbouring_slices_of_one_case_under_one_window() -> None:
    entries = [entry_of((size, 20, 18), (1, 2, 3, 4), (1, 3, 19, 0)) for size in (9, 12, 4, 30)]
    for batch in windows_of(entries, RUNS, 50):
        for run in (batch[:4], batch[4:8], batch[8:]):
            assert len({(window.entry, *window.start[1:]) for window in run}) == 1
            assert {window.shape for window in run} == {(1, 6, 5)}
            depths = [window.start[0] for window in run]
            assert np.diff(depths).tolist() == [1, 1, 1]
            assert depths[0] >= 0
            assert depths[-1] < entries[run[0].entry].shape[0]


def test_the_runs_of_a_batch_are_drawn_apart() -> None:
    entries = [entry_of((40, 20, 18)) for _ in range(50)]
    chosen = [batch[place].entry for batch in windows_of(entries, RUNS, 40) for place in (0, 4, 8)]
    assert len(set(chosen)) > 40


def test_a_volume_with_fewer_slices_repeats_its_last() -> None:
    for batch in windows_of([entry_of((3, 20, 18))], RUNS, 5):
        assert [window.start[0] for window in batch] == [0, 1, 2, 2] * 3
    for batch in windows_of([entry_of((3, 20, 18), (1, 0, 0, 0))], replace(RUNS, foreground_share=1.0), 5):
        assert [window.start[0] for window in batch] == [0, 1, 2, 2] * 3


@pytest.mark.parametrize("depth", [0, 1, 5, 28, 29])
def test_a_forced_run_holds_the_labelled_slice_even_at_the_border(depth: int) -> None:
    voxel = (depth, 0, 17)
    for batch in windows_of([entry_of((30, 20, 18), (1, *voxel))], replace(RUNS, foreground_share=1.0), 3):
        for run in (batch[:4], batch[4:8], batch[8:]):
            assert sum(is_in(window, voxel) for window in run) == 1


def test_the_last_runs_of_a_batch_show_foreground() -> None:
    voxel = (0, 0, 0)
    entry = entry_of((200, 200, 200), (1, *voxel))
    for batch in windows_of([entry], replace(RUNS, foreground_share=0.33), 20):
        assert [any(is_in(w, voxel) for w in batch[at : at + 4]) for at in (0, 4, 8)] == [False, False, True]


def test_one_run_per_batch_shows_foreground_by_chance() -> None:
    rule = replace(RUNS, num_volumes=1, foreground_share=0.4)
    entry = entry_of((200, 200, 200), (1, 0, 0, 0))
    shown = sum(window_of([entry], rule, 12 * batch).start == (0, 0, 0) for batch in range(2000))
    assert abs(shown - 800) < 4 * np.sqrt(2000 * 0.4 * 0.6)


def test_as_many_volumes_as_slices_is_one_slice_from_each() -> None:
    entries = [entry_of((9, 20, 18), (1, 4, 4, 4)), entry_of((12, 20, 18))]
    same = replace(RULE, num_volumes=2)
    for index in range(40):
        assert window_of(entries, same, index) == window_of(entries, RULE, index)


@pytest.mark.parametrize("num_cases", [1, 3, 7])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_pass_gives_one_run_of_every_case(num_cases: int, world_size: int) -> None:
    rule = replace(RUNS, steps_per_epoch=0, world_size=world_size)
    samples = steps_in_epoch(rule, num_cases) * rule.batch_size * world_size
    assert samples == -(-num_cases // (3 * world_size)) * 12 * world_size
    for epoch in range(2):
        shown = [
            choose_case(rule, num_cases, index, generator_for(0, stream_index(rule, index)))
            for index in range(epoch * samples, (epoch + 1) * samples)
        ]
        counted = Counter(case for case, weight in shown if weight)
        assert counted == dict.fromkeys(range(num_cases), 4)


@pytest.mark.parametrize("num_volumes", [0, -2, 5, 24])
def test_volumes_that_do_not_divide_the_batch_are_refused(num_volumes: int) -> None:
    with pytest.raises(UserError, match=f"--nvol {num_volumes} does not divide .* Choose a --batch_size"):
        replace(RUNS, num_volumes=num_volumes)


def test_volumes_per_batch_are_refused_for_a_plan_of_blocks() -> None:
    with pytest.raises(UserError, match="patch is 4 slices deep.*--dim 2"):
        replace(RUNS, patch=(4, 6, 5))
