"""Which window of which case: drawn from (seed, global sample index) alone, before a voxel is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_loading.catalogue import Entry, ForegroundTable
from utils.contracts import Shape
from utils.seeding import seed_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A block of one case's volume; `start` may be negative and the block may hang over the border."""

    entry: int
    start: Shape
    shape: Shape
    weight: float  # 0 for a padded copy at the end of a pass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRule:
    """How windows are drawn.

    With `steps_per_epoch` > 0 cases are drawn uniformly with replacement (Isensee et al. 2021); with 0 each
    epoch passes once over a shuffled list, filled up with copies of weight 0 so that all ranks step equally.
    The last samples of a batch are centred on foreground: sample i where i >= round(batch * (1 - share)).
    Where a case lists annotated background (label 0, because the dataset has an ignore label), the other
    samples are centred on any annotated voxel, so that no window shows nothing but ignored ones.
    """

    patch: Shape
    batch_size: int
    world_size: int
    steps_per_epoch: int
    foreground_share: float
    seed: int


def steps_in_epoch(rule: SamplingRule, num_cases: int) -> int:
    """Training steps of one epoch, equal on every rank."""
    return rule.steps_per_epoch or -(-num_cases // (rule.batch_size * rule.world_size))


def generator_for(seed: int, index: int) -> np.random.Generator:
    """The random stream of one sample: counter-based, so sample n needs no history (Salmon et al. 2011)."""
    # As unsigned words: a list with a number of 2**63 or more would pass through float64 and lose digits.
    key = np.array([seed & (2**64 - 1), index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def choose_case(
    rule: SamplingRule, num_cases: int, index: int, random: np.random.Generator
) -> tuple[int, float]:
    """Position of the case that global sample `index` shows, and its weight."""
    if rule.steps_per_epoch:
        return int(random.integers(num_cases)), 1.0
    per_epoch = steps_in_epoch(rule, num_cases) * rule.batch_size * rule.world_size
    epoch, place = divmod(index, per_epoch)
    return shuffled_cases(rule.seed, epoch, num_cases)[place % num_cases], float(place < num_cases)


@lru_cache(maxsize=4)  # an epoch's samples ask for one list, those fetched ahead for the next
def shuffled_cases(seed: int, epoch: int, num_cases: int) -> tuple[int, ...]:
    """The order in which one pass shows the cases."""
    order = np.random.default_rng(seed_for(seed, "order", epoch)).permutation(num_cases)
    return tuple(order.tolist())


def draw_window(
    entries: Sequence[Entry], rule: SamplingRule, index: int, random: np.random.Generator
) -> Window:
    """The window of global sample `index`."""
    entry, weight = choose_case(rule, len(entries), index, random)
    shape, table = entries[entry].shape, entries[entry].foreground
    place = index % rule.batch_size
    forced = place >= round(rule.batch_size * (1 - rule.foreground_share))
    if rule.batch_size == 1:
        forced = random.random() < rule.foreground_share  # no place of a batch of one can stand for a share
    if forced and any(table.labels):
        start = centred_start(foreground_voxel(table, random), shape, rule.patch)
    elif 0 in table.labels:
        voxel = table.positions[int(random.integers(len(table.positions)))]
        start = centred_start(voxel, shape, rule.patch)
    else:
        start = uniform_start(shape, rule.patch, random)
    return Window(entry=entry, start=start, shape=rule.patch, weight=weight)


def foreground_voxel(table: ForegroundTable, random: np.random.Generator) -> np.ndarray:
    """Position (d, h, w) of a random voxel of a random label among those present; background is none."""
    present = [place for place, label in enumerate(table.labels) if label > 0]
    which = present[int(random.integers(len(present)))]
    return table.positions[int(random.integers(table.starts[which], table.stops[which]))]


def centred_start(voxel: np.ndarray, shape: Shape, patch: Shape) -> Shape:
    """Corner of the window around `voxel` (d, h, w).

    Clamped at both borders, so that a window hangs over only where the volume is smaller than the patch.
    """
    return _triple(
        [
            min(max(int(v) - p // 2, 0), s - p) if s > p else -((p - s) // 2)
            for v, s, p in zip(voxel, shape, patch, strict=True)
        ]
    )


def uniform_start(shape: Shape, patch: Shape, random: np.random.Generator) -> Shape:
    """Corner of a window anywhere inside the volume; centred along an axis that is shorter than the patch."""
    return _triple(
        [
            int(random.integers(s - p + 1)) if s > p else -((p - s) // 2)
            for s, p in zip(shape, patch, strict=True)
        ]
    )


def _triple(values: list[int]) -> Shape:
    depth, height, width = values
    return depth, height, width
