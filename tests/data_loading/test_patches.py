"""Which window of which case: the sampling rule, checked by counting."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_loading.catalogue import Entry, ForegroundTable
from data_loading.patches import (
    SamplingRule,
    case_rates,
    centred_start,
    choose_case,
    class_balanced_limits,
    draw_window,
    foreground_voxel,
    generator_for,
    shuffled_cases,
    steps_in_epoch,
    uniform_start,
)
from utils.contracts import Shape
from utils.errors import UserError

DRAWS = 20_000
KNOWN_DRAWS = [(0, 3, 3, 1), (3, -1, -1, -1), (0, 1, 3, 1), (2, 0, 0, 3), (1, 0, 0, 0), (1, 0, 0, 0)]
RULE = SamplingRule(
    patch=(4, 6, 5), batch_size=2, world_size=1, steps_per_epoch=10, foreground_share=0.33, seed=1
)


def table_of(rows: dict[int, list[Shape]]) -> ForegroundTable:
    counts = [len(positions) for positions in rows.values()]
    stops = np.cumsum(counts).tolist()
    return ForegroundTable(
        labels=tuple(rows),
        starts=tuple(stop - count for stop, count in zip(stops, counts, strict=True)),
        stops=tuple(stops),
        positions=np.array([p for group in rows.values() for p in group], np.int32).reshape(-1, 3),
    )


def entry_of(prepared_entry: Entry, shape: Shape, table: ForegroundTable) -> Entry:
    return replace(prepared_entry, shape=shape, foreground=table)


def test_windows_stay_inside_long_axes_and_are_centred_on_short_ones() -> None:
    random = np.random.default_rng(0)
    shape, patch = (9, 3, 5), (4, 6, 5)
    starts = {uniform_start(shape, patch, random) for _ in range(500)}
    voxels = np.argwhere(np.ones(shape, bool))
    starts |= {centred_start(voxel, shape, patch) for voxel in voxels}
    assert starts == {(depth, -1, 0) for depth in range(6)}


def test_uniform_windows_reach_every_corner_equally_often() -> None:
    random = np.random.default_rng(0)
    count = Counter(uniform_start((7, 6, 5), (4, 6, 5), random)[0] for _ in range(4000))
    assert sorted(count) == [0, 1, 2, 3]
    assert min(count.values()) > 1000 - 4 * np.sqrt(750)


def test_a_window_on_foreground_has_it_in_the_middle_unless_the_border_is_near() -> None:
    assert centred_start(np.array([10, 10, 10]), (20, 20, 20), (4, 6, 5)) == (8, 7, 8)
    assert centred_start(np.array([0, 19, 1]), (20, 20, 20), (4, 6, 5)) == (0, 14, 0)


def test_labels_are_drawn_equally_often_whatever_their_size() -> None:
    large = [(1, place, 0) for place in range(1000)]
    table = table_of({1: [(0, 0, 0)], 2: large, 7: [(2, 0, 0), (2, 1, 0)]})
    random = np.random.default_rng(0)
    count = Counter(int(foreground_voxel(table, random)[0]) for _ in range(3000))
    assert sorted(count) == [0, 1, 2]
    assert max(abs(number - 1000) for number in count.values()) < 4 * np.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize(
    ("batch_size", "share", "forced"),
    [(1, 0.0, 0), (1, 1.0, 1), (2, 0.33, 1), (9, 0.33, 3), (12, 0.33, 4), (4, 0.0, 0), (4, 1.0, 4)],
)
def test_the_last_samples_of_a_batch_show_foreground(
    prepared, batch_size: int, share: float, forced: int
) -> None:
    corner = (0, 0, 0)
    entry = entry_of(prepared.entries[0], (100, 100, 100), table_of({1: [corner]}))
    rule = replace(RULE, patch=(3, 3, 3), batch_size=batch_size, foreground_share=share)
    for batch in range(5):
        starts = [
            draw_window(
                [entry], rule, batch * batch_size + place, generator_for(0, batch * 100 + place)
            ).start
            for place in range(batch_size)
        ]
        assert [start == corner for start in starts] == [False] * (batch_size - forced) + [True] * forced


def test_a_batch_of_one_shows_foreground_by_chance(prepared) -> None:
    corner = (0, 0, 0)
    entry = entry_of(prepared.entries[0], (100, 100, 100), table_of({1: [corner]}))
    rule = replace(RULE, patch=(3, 3, 3), batch_size=1, foreground_share=0.33)
    starts = [draw_window([entry], rule, index, generator_for(0, index)).start for index in range(600)]
    assert abs(starts.count(corner) - 198) < 4 * np.sqrt(600 * 0.33 * 0.67)


def test_without_foreground_a_window_lies_anywhere(prepared) -> None:
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of({}))
    rule = replace(RULE, foreground_share=1.0)
    starts = {draw_window([entry], rule, index, generator_for(0, index)).start for index in range(50)}
    assert len(starts) > 40


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_of_the_forced_windows_a_share_is_centred_on_the_lesion(prepared, share: float) -> None:
    rows = {1: [(0, 0, 0)], 2: [(0, 0, 49)], 3: [(49, 49, place) for place in range(50)]}
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of(rows))
    rule = replace(
        RULE, patch=(1, 1, 1), batch_size=1, foreground_share=1.0, lesion_share=share, lesion_label=3
    )
    starts = [draw_window([entry], rule, index, generator_for(0, index)).start for index in range(DRAWS)]
    shown = sum(start[0] == 49 for start in starts)
    rate = share + (1 - share) / 3  # the others show each of the three labels equally often
    assert abs(shown - DRAWS * rate) <= 4 * np.sqrt(DRAWS * rate * (1 - rate))
    assert len(set(starts) - {(0, 0, 0), (0, 0, 49)}) == 50  # every voxel of the lesion


def test_where_a_case_has_no_lesion_its_other_labels_are_shown(prepared) -> None:
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of({1: [(3, 4, 5)]}))
    rule = replace(RULE, patch=(1, 1, 1), foreground_share=1.0, lesion_share=1.0, lesion_label=2)
    assert {draw_window([entry], rule, i, generator_for(0, i)).start for i in range(20)} == {(3, 4, 5)}


def test_the_lesion_share_leaves_windows_that_are_not_forced_alone(prepared) -> None:
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of({1: [(0, 0, 0)], 2: [(9, 9, 9)]}))
    plain = replace(RULE, foreground_share=0.5)
    centred = replace(plain, lesion_share=1.0, lesion_label=2)
    for index in range(0, 40, 2):  # the first of a batch of two
        one, other = (draw_window([entry], rule, index, generator_for(0, index)) for rule in (plain, centred))
        assert one == other


def test_annotated_background_is_no_foreground(prepared) -> None:
    rows = {0: [(0, 0, place) for place in range(50)], 1: [(49, 49, 49)]}
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of(rows))
    rule = replace(RULE, patch=(1, 1, 1), foreground_share=1.0)
    starts = {draw_window([entry], rule, index, generator_for(0, index)).start for index in range(50)}
    assert starts == {(49, 49, 49)}


@pytest.mark.parametrize("label", [0, 2])  # a case may have no annotated background, or nothing else
def test_with_an_ignore_label_every_window_shows_an_annotated_voxel(prepared, label: int) -> None:
    annotated = [(0, 0, place) for place in range(50)]
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of({label: annotated}))
    for share in (0.0, 1.0):
        rule = replace(RULE, patch=(1, 1, 1), foreground_share=share, annotated_only=True)
        starts = {draw_window([entry], rule, index, generator_for(0, index)).start for index in range(99)}
        assert starts <= set(annotated)
        assert len(starts) > 20


def test_with_an_ignore_label_a_case_without_annotation_gives_windows_anywhere(prepared) -> None:
    entry = entry_of(prepared.entries[0], (50, 50, 50), table_of({}))
    rule = replace(RULE, patch=(1, 1, 1), annotated_only=True)
    starts = {draw_window([entry], rule, index, generator_for(0, index)).start for index in range(50)}
    assert len(starts) > 40


def test_with_steps_given_cases_are_drawn_uniformly_with_replacement() -> None:
    drawn = [choose_case(RULE, 5, index, generator_for(3, index)) for index in range(5000)]
    count = Counter(case for case, _ in drawn)
    assert sorted(count) == [0, 1, 2, 3, 4]
    assert max(abs(number - 1000) for number in count.values()) < 4 * np.sqrt(5000 * 0.16)
    assert {weight for _, weight in drawn} == {1.0}
    assert len({case for case, _ in drawn[:5]}) < 5  # a pass over the list would show each once


@pytest.mark.parametrize("num_cases", [1, 3, 13])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_one_pass_shows_every_case_exactly_once(num_cases: int, batch_size: int, world_size: int) -> None:
    rule = replace(RULE, steps_per_epoch=0, batch_size=batch_size, world_size=world_size)
    per_epoch = steps_in_epoch(rule, num_cases) * batch_size * world_size
    for epoch in range(3):
        shown = [
            choose_case(rule, num_cases, index, generator_for(0, index))
            for index in range(epoch * per_epoch, (epoch + 1) * per_epoch)
        ]
        assert sorted(case for case, weight in shown if weight == 1.0) == list(range(num_cases))
        assert sum(weight == 0.0 for _, weight in shown) == per_epoch - num_cases


def test_a_pass_has_no_more_steps_than_it_needs() -> None:
    rule = replace(RULE, steps_per_epoch=0, world_size=3)
    assert [steps_in_epoch(rule, number) for number in (1, 6, 7, 13)] == [1, 1, 2, 3]


def test_each_pass_has_its_own_order() -> None:
    rule = replace(RULE, steps_per_epoch=0)
    shown = [choose_case(rule, 20, index, generator_for(0, index))[0] for index in range(5 * 20)]
    orders = [tuple(shown[start : start + 20]) for start in range(0, 100, 20)]
    orders.append(shuffled_cases(rule.seed + 1, 0, 20))
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_a_sample_has_one_stream_and_its_neighbours_have_others() -> None:
    first = [generator_for(seed, index).random() for seed in (-1, 0, 1, 2**62) for index in range(100)]
    again = [generator_for(seed, index).random() for seed in (-1, 0, 1, 2**62) for index in range(100)]
    assert first == again
    assert len(set(first)) == 400


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("targets", "rates"),
    [
        ([0, 0, 0, 1], [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        ([0, 1, 2, 2], [1 / 3, 1 / 3, 1 / 6, 1 / 6]),
        ([0, -1, 0, 1, -1], [3 / 20, 1 / 5, 3 / 20, 3 / 10, 1 / 5]),
        ([2, 2, -1], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_balanced_cases_are_drawn_inversely_to_the_size_of_their_class(
    prepared, targets: list[int], rates: list[float]
) -> None:
    rule = replace(RULE, case_limits=class_balanced_limits(targets))
    entries = prepared.entries[: len(targets)]
    np.testing.assert_allclose(case_rates(rule, entries), rates, rtol=1e-12)
    drawn = [choose_case(rule, len(targets), index, generator_for(5, index)) for index in range(DRAWS)]
    observed = np.bincount([case for case, _ in drawn], minlength=len(targets))
    assert chi_square(observed, DRAWS * np.array(rates)) < 27.9  # 1 in 100 000 at 4 degrees of freedom
    assert {weight for _, weight in drawn} == {1.0}


def test_a_balanced_draw_is_the_place_of_one_random_number_among_the_limits() -> None:
    targets = [0, 1, 1, 2, -1, 0, 0]
    rule = replace(RULE, case_limits=class_balanced_limits(targets))
    for index in range(500):
        place = np.searchsorted(rule.case_limits, generator_for(8, index).random(), side="right")
        assert choose_case(rule, len(targets), index, generator_for(8, index)) == (place, 1.0)


@pytest.mark.parametrize("num_cases", [1, 3, 7, 11, 1000])
def test_no_random_number_falls_behind_the_last_case(num_cases: int) -> None:
    limits = class_balanced_limits([place % 3 for place in range(num_cases)])
    assert len(limits) == num_cases
    assert limits[-1] == 1.0
    assert sorted(set(limits)) == list(limits)


@pytest.mark.parametrize("steps_per_epoch", [0, 10])
def test_without_balance_every_case_has_the_same_rate(prepared, steps_per_epoch: int) -> None:
    rule = replace(RULE, steps_per_epoch=steps_per_epoch)
    rates = case_rates(rule, prepared.entries)
    np.testing.assert_array_equal(rates, [0.2] * 5)
    draws = DRAWS if steps_per_epoch else 6 * 4000  # of six samples in a pass, five count
    drawn = [choose_case(rule, 5, index, generator_for(3, index)) for index in range(draws)]
    observed = np.bincount([case for case, weight in drawn if weight], minlength=5)
    assert chi_square(observed, DRAWS * rates) < 27.9


def test_the_options_that_are_off_leave_every_draw_as_it_was(prepared) -> None:
    """Corners of the first samples as drawn before the options existed: case, then depth, height, width."""
    rule = replace(RULE, batch_size=2, foreground_share=0.5)
    windows = [draw_window(prepared.entries, rule, index, generator_for(7, index)) for index in range(6)]
    assert [(window.entry, *window.start) for window in windows] == KNOWN_DRAWS


def test_balance_without_a_number_of_steps_is_refused() -> None:
    with pytest.raises(UserError, match="--balance_classes .* Add --steps_per_epoch"):
        replace(RULE, steps_per_epoch=0, case_limits=(0.5, 1.0))


def test_balance_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="no training case has a class"):
        class_balanced_limits([-1, -1])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"foreground_share": 1.5}, "--oversampling is a share from 0 to 1, got 1.5"),
        ({"lesion_share": -0.1}, "--lesion_centred is a share from 0 to 1, got -0.1"),
        ({"batch_size": 0}, "--batch_size should be at least 1"),
        ({"steps_per_epoch": -1}, "--steps_per_epoch should be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_option(changed: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(RULE, **changed)
