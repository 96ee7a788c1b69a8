"""Which window of which case: drawn from (seed, global sample index) alone, before a voxel is read."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from data_loading.catalogue import Entry, ForegroundTable
from utils.contracts import NO_CLASS, Shape
from utils.errors import UserError
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

    With `steps_per_epoch` > 0 cases are drawn with replacement, uniformly (Isensee et al. 2021) or by
    `case_limits`; with 0 each epoch passes once over a shuffled list, filled up with copies of weight 0 so
    that all ranks step equally.
    The last samples of a batch are centred on foreground: sample i where i >= round(batch * (1 - share)).
    Of these, `lesion_share` are centred on the lesion where the case has one, the others on any of its labels
    with equal chance. A case without a mask gives uniform windows.
    With `annotated_only`, for datasets with an ignore label, the other samples are centred on any annotated
    voxel, background or not, so that no window shows nothing but ignored ones.
    With `num_volumes` a batch of slices comes from so many volumes, each of which gives a run of neighbouring
    slices that share one draw; the rules above then hold for runs instead of samples.
    """

    patch: Shape
    batch_size: int
    world_size: int
    steps_per_epoch: int
    foreground_share: float
    seed: int
    lesion_share: float = 0.0
    lesion_label: int = 0  # the label that `lesion_share` centres on
    case_limits: tuple[float, ...] = ()  # running sums of the cases' probabilities; empty: all alike
    num_volumes: int | None = None  # unset: every sample has its own draw
    step_limit: int = 0  # steps of an epoch at most; 0: all
    annotated_only: bool = False  # the cases list annotated background too, as label 0

    def __post_init__(self) -> None:
        for option, share in (("oversampling", self.foreground_share), ("lesion_centred", self.lesion_share)):
            if not 0 <= share <= 1:
                raise UserError(f"--{option} is a share from 0 to 1, got {share}.")
        if self.batch_size < 1:
            raise UserError(f"--batch_size should be at least 1, got {self.batch_size}.")
        if self.steps_per_epoch < 0:
            raise UserError(f"--steps_per_epoch should be at least 0, got {self.steps_per_epoch}.")
        if self.step_limit < 0:
            raise UserError(f"--train_batches should be at least 0, got {self.step_limit}.")
        if self.case_limits and not self.steps_per_epoch:
            raise UserError(
                "--balance_classes shows cases of rare classes more often than others, but one pass over the "
                "cases shows each once. Add --steps_per_epoch, for example 250."
            )
        if self.num_volumes is not None:
            _check_num_volumes(self.num_volumes, self.batch_size, self.patch)

    @property
    def slices_per_draw(self) -> int:
        """Neighbouring samples that share one draw."""
        return 1 if self.num_volumes is None else self.batch_size // self.num_volumes

    @property
    def draws_per_batch(self) -> int:
        """Draws of case and window that fill a batch."""
        return self.batch_size // self.slices_per_draw


def _check_num_volumes(num_volumes: int, batch_size: int, patch: Shape) -> None:
    if patch[0] != 1:
        raise UserError(
            f"--nvol takes batches of slices, but the plan's patch is {patch[0]} slices deep. "
            "Leave --nvol out, or train the slice-wise plan with --dim 2."
        )
    if num_volumes < 1 or batch_size % num_volumes:
        raise UserError(
            f"--nvol {num_volumes} does not divide the batch of {batch_size} slices into equal runs. "
            "Choose a --batch_size that is a multiple of --nvol, or another --nvol."
        )


def steps_in_epoch(rule: SamplingRule, num_cases: int) -> int:
    """Training steps of one epoch, equal on every rank."""
    steps = rule.steps_per_epoch or -(-num_cases // (rule.draws_per_batch * rule.world_size))
    return min(steps, rule.step_limit or steps)


def stream_index(rule: SamplingRule, index: int) -> int:
    """The sample whose random stream global sample `index` uses: the first of those that share its draw."""
    return index - index % rule.slices_per_draw


def generator_for(seed: int, index: int) -> np.random.Generator:
    """The random stream of one sample: counter-based, so sample n needs no history (Salmon et al. 2011)."""
    # As unsigned words: a list with a number of 2**63 or more would pass through float64 and lose digits.
    key = np.array([seed & (2**64 - 1), index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def class_balanced_limits(class_targets: Sequence[int]) -> tuple[float, ...]:
    """Running sums of the cases' probabilities when classes are to be seen equally often; the last is 1.

    Of N cases, M with a known class, a case of one of K classes with n members has M / (N K n), so that every
    class has M / (N K); a case without a class keeps 1 / N.
    """
    members = Counter(class_targets)
    num_unknown = members.pop(NO_CLASS, 0)
    if not members:
        raise UserError("--balance_classes: no training case has a class. Leave the option out.")
    num_cases = len(class_targets)
    share = (num_cases - num_unknown) / (num_cases * len(members))
    rates = (1 / num_cases if target == NO_CLASS else share / members[target] for target in class_targets)
    return (*list(accumulate(rates))[:-1], 1.0)  # exactly 1, whatever rounding made of the sum


def case_rates(rule: SamplingRule, entries: Sequence[Entry]) -> np.ndarray:
    """The probability (N,) that one draw shows each of the N cases; in a pass, among the draws that count."""
    if rule.case_limits:
        return np.diff(rule.case_limits, prepend=0.0)
    return np.full(len(entries), 1 / len(entries))


def choose_case(
    rule: SamplingRule, num_cases: int, index: int, random: np.random.Generator
) -> tuple[int, float]:
    """Position of the case that global sample `index` shows, and its weight."""
    if rule.case_limits:
        assert len(rule.case_limits) == num_cases
        return bisect_right(rule.case_limits, random.random()), 1.0
    if rule.steps_per_epoch:
        return int(random.integers(num_cases)), 1.0
    per_epoch = steps_in_epoch(rule, num_cases) * rule.draws_per_batch * rule.world_size
    epoch, place = divmod(index // rule.slices_per_draw, per_epoch)
    return shuffled_cases(rule.seed, epoch, num_cases)[place % num_cases], float(place < num_cases)


@lru_cache(maxsize=4)  # an epoch's samples ask for one list, those fetched ahead for the next
def shuffled_cases(seed: int, epoch: int, num_cases: int) -> tuple[int, ...]:
    """The order in which one pass shows the cases."""
    order = np.random.default_rng(seed_for(seed, "order", epoch)).permutation(num_cases)
    return tuple(order.tolist())


def draw_window(
    entries: Sequence[Entry], rule: SamplingRule, index: int, random: np.random.Generator
) -> Window:
    """The window of global sample `index`; `random` is the generator of its `stream_index`."""
    entry, weight = choose_case(rule, len(entries), index, random)
    shape, run = entries[entry].shape, rule.slices_per_draw
    block = (run, *rule.patch[1:]) if run > 1 else rule.patch
    depth, height, width = _draw_start(entries[entry], rule, block, index, random)
    if run > 1:  # one slice of the run; a volume with fewer slices repeats its last
        depth = min(max(depth, 0) + index % run, shape[0] - 1)
    return Window(entry=entry, start=(depth, height, width), shape=rule.patch, weight=weight)


def _draw_start(
    entry: Entry, rule: SamplingRule, block: Shape, index: int, random: np.random.Generator
) -> Shape:
    """Corner of the drawn block in the volume of `entry`."""
    shape, table = entry.shape, entry.foreground
    draws = rule.draws_per_batch
    forced = index // rule.slices_per_draw % draws >= round(draws * (1 - rule.foreground_share))
    if draws == 1:
        forced = random.random() < rule.foreground_share  # no place of a batch of one can stand for a share
    if forced and any(table.labels):
        wants_lesion = rule.lesion_share > 0 and random.random() < rule.lesion_share
        if wants_lesion and rule.lesion_label in table.labels:
            voxel = label_voxel(table, table.labels.index(rule.lesion_label), random)
        else:
            voxel = foreground_voxel(table, random)
        return centred_start(voxel, shape, block)
    if rule.annotated_only and len(table.positions) > 0:
        voxel = table.positions[int(random.integers(len(table.positions)))]
        return centred_start(voxel, shape, block)
    return uniform_start(shape, block, random)


def foreground_voxel(table: ForegroundTable, random: np.random.Generator) -> np.ndarray:
    """Position (d, h, w) of a random voxel of a random label among those present; background is none."""
    present = [place for place, label in enumerate(table.labels) if label > 0]
    return label_voxel(table, present[int(random.integers(len(present)))], random)


def label_voxel(table: ForegroundTable, which: int, random: np.random.Generator) -> np.ndarray:
    """Position (d, h, w) of a random voxel of the label at place `which` of the table."""
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
