"""What one patch costs on one core, row by row: drawing, reading, every augmentation, the hand-over.

Each part is timed on blocks of the folder's own volumes, as large as its draws need. Of the draws those that
change something are timed, so that probability x cost is what the part adds to a mean patch. A part that
reads the volumes itself contains its reading; the row `read` is then what is left of it in a mean patch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import mean, median
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np

from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.catalogue import Entry
from data_loading.graphs import GraphSettings, training_graph
from data_loading.targets import TargetRule, targets_on_host
from scripts.benchmark_meter import metered
from scripts.benchmark_record import OperatorCost, OperatorCosts
from utils.contracts import Shape
from utils.seeding import seed_for
from utils.timing import waiter

if TYPE_CHECKING:
    from data_loading.readers import StoredCase
    from scripts.benchmark_loader import LoaderWork

DRAWS = 1000  # from which a part's probability is taken
TIMED_DRAWS = 12  # of those that change something
TIMED_SAMPLES = 24  # whole samples, for drawing and reading
ROUNDS = 5  # of each measurement, of which the median counts
MS_PER_S = 1e3

Arrays = tuple[np.ndarray, ...]


@final
@dataclass(frozen=True, eq=False)
class Replayed(Augmentation):
    """A part whose draws are given, one after the other, and again from the first; its reading is timed."""

    name: ClassVar[str] = "replayed"
    has_twin: ClassVar[bool] = True
    reads: ClassVar[bool] = True
    part: Augmentation
    drawn: Iterator[np.ndarray]
    laps_s: list[float] = field(default_factory=list)  # of `read`

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:  # noqa: ARG002
        """The next vector of the list."""
        return next(self.drawn)

    def source_shape(self, drawn: np.ndarray, patch: Shape) -> Shape:
        """What the part needs."""
        return self.part.source_shape(drawn, patch)

    def apply(self, image: Any, label: Any, drawn: Any) -> tuple[Any, Any]:
        """What the part does."""
        return self.part.apply(image, label, drawn)

    def read(self, case: StoredCase, start: Shape, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the part reads."""
        started = time.perf_counter()
        changed = self.part.read(case, start, drawn)
        self.laps_s.append(time.perf_counter() - started)
        return changed


@final
@dataclass(frozen=True, eq=False)
class HeldSamples:
    """Samples made before, given to a graph again and again: it waits for no disk and no draw."""

    samples: tuple[Arrays, ...]
    batch_size: int
    entries: tuple[Entry, ...]
    targets: TargetRule
    in_graph: tuple[Augmentation, ...]
    is_finished: bool
    num_on_host: int

    def __call__(self, sample: Any) -> Arrays:
        """The sample at the position that DALI asks for."""
        number = sample.iteration * self.batch_size + sample.idx_in_batch
        return self.samples[number % len(self.samples)]


def operator_costs(work: LoaderWork) -> OperatorCosts:
    """The rows of this recipe, in the order of the work, and their sums."""
    source = work.source(work.recipe, on_host=work.shard.on_host)
    finished = source.is_finished
    context = DrawContext(patch=work.rule.patch, num_channels=work.plan.num_channels)
    plain_ms, plain_read_ms = _sample_ms(work, on_host=False)
    one_thread_ms, read_ms = _sample_ms(work, on_host=work.shard.on_host)
    rows = [_always("draw", "host", plain_ms - plain_read_ms), _always("read", "host", read_ms)]
    empty = _timed_graph(work, _samples(work, (), on_host=finished), None)
    empty_ms = median(empty.lap_ms() for _ in range(ROUNDS))

    def on_host(part: Augmentation, drawn: Sequence[np.ndarray]) -> float:
        if part.reads and part is work.recipe[0]:
            return _reading_ms(work, part, drawn)
        return _host_ms(part, _replayed(work, part, drawn))

    def in_graph(part: Augmentation, drawn: Sequence[np.ndarray]) -> float:
        return _added_ms(_timed_graph(work, _replayed(work, part, drawn), part), empty)

    for place, part in enumerate(work.recipe):
        random = np.random.default_rng(seed_for(work.rule.seed, "operators", place))
        where, cost = ("host", on_host) if place < source.num_on_host else ("graph", in_graph)
        rows.append(_part_row(part, where, cost, draw=lambda one, r=random: one.draw(r, context)))
    if finished:
        rows.append(_always("targets", "host", _targets_ms(work)))
    rows.append(_always("hand over" if finished else "targets, hand over", "graph", empty_ms))
    host_ms, graph_ms = (
        sum(row.mean_ms for row in rows if row.place == place) for place in ("host", "graph")
    )
    return OperatorCosts(rows=tuple(rows), host_ms=host_ms, graph_ms=graph_ms, one_thread_ms=one_thread_ms)


def always(part: Augmentation) -> Augmentation | None:
    """The part with every probability at 1; None if it has none."""
    names = [one.name for one in fields(part) if one.name.endswith("probability")]
    changed: Any = dict.fromkeys(names, 1.0)
    return replace(part, **changed) if names else None


def _always(name: str, place: str, cost_ms: float) -> OperatorCost:
    cost_ms = max(cost_ms, 0.0)
    return OperatorCost(
        name=name, place=place, probability=1.0, applied_ms=cost_ms, forced_ms=None, mean_ms=cost_ms
    )


def _part_row(
    part: Augmentation,
    place: str,
    cost: Callable[[Augmentation, Sequence[np.ndarray]], float],
    *,
    draw: Callable[[Augmentation], np.ndarray],
) -> OperatorCost:
    """`cost` of the draws that change something, and of those with every probability at 1."""
    drawn = [values for _ in range(DRAWS) if (values := draw(part))[0]]
    certain = always(part)
    forced = [draw(certain) for _ in range(TIMED_DRAWS)] if certain else []
    forced = [values for values in forced if values[0]]
    probability = len(drawn) / DRAWS
    forced_ms = max(cost(part, forced), 0.0) if forced else None
    applied_ms = max(cost(part, drawn[:TIMED_DRAWS]), 0.0) if drawn else forced_ms or 0.0
    return OperatorCost(
        name=part.name,
        place=place,
        probability=probability,
        applied_ms=applied_ms,
        forced_ms=forced_ms,
        mean_ms=probability * applied_ms,
    )


def _sample_ms(work: LoaderWork, *, on_host: bool) -> tuple[float, float]:
    """A whole sample made by this thread, and the reading in it; from the page cache, compiled."""
    source = work.source(work.recipe, on_host=on_host)
    meter = metered(source)
    totals, reads = [], []
    for _ in range(1 + ROUNDS):
        meter.seconds, started = 0.0, time.perf_counter()
        for number in range(TIMED_SAMPLES):
            source.make(number)
        totals.append((time.perf_counter() - started) / TIMED_SAMPLES)
        reads.append(meter.seconds / TIMED_SAMPLES)
    return median(totals[1:]) * MS_PER_S, median(reads[1:]) * MS_PER_S


def _samples(work: LoaderWork, recipe: Sequence[Augmentation], *, on_host: bool) -> tuple[Arrays, ...]:
    """Whole batches of samples, at least as many as draws are timed."""
    source = work.source(recipe, on_host=on_host)
    batches = -(-TIMED_DRAWS // work.rule.batch_size)
    return tuple(source.make(number) for number in range(batches * work.rule.batch_size))


def _replayed(work: LoaderWork, part: Augmentation, drawn: Sequence[np.ndarray]) -> tuple[Arrays, ...]:
    """Image block, entry, weights, label block, drawn vector: the block as large as its draw needs."""
    return _samples(work, (Replayed(part, itertools.cycle(drawn)),), on_host=False)


def _host_ms(part: Augmentation, samples: Sequence[Arrays]) -> float:
    costs = []
    for number, (image, _, _, label, drawn) in enumerate(samples):
        laps = []
        for _ in range(ROUNDS + (number == 0)):  # once more where it is compiled
            own, maps = image.astype(np.float32), label.copy()  # a part may change what it is given
            started = time.perf_counter()
            part.compute(own, maps, drawn)
            laps.append(time.perf_counter() - started)
        costs.append(median(laps[-ROUNDS:]))
    return mean(costs) * MS_PER_S


def _reading_ms(work: LoaderWork, part: Augmentation, drawn: Sequence[np.ndarray]) -> float:
    """A part that takes its voxels from the volumes itself: its cost holds the reading."""
    replayed = Replayed(part, itertools.cycle(drawn))
    source = work.source((replayed,), on_host=True)
    for _ in range(1 + ROUNDS):
        for number in range(len(drawn)):
            source.make(number)
    laps = np.reshape(replayed.laps_s, (1 + ROUNDS, len(drawn)))
    return float(np.median(laps[1:], axis=0).mean()) * MS_PER_S


def _targets_ms(work: LoaderWork) -> float:
    costs = []
    for image, _, _, label in _samples(work, (), on_host=False):
        single = image.astype(np.float32)
        laps = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            targets_on_host(single, label, work.targets)
            laps.append(time.perf_counter() - started)
        costs.append(median(laps))
    return mean(costs) * MS_PER_S


@final
@dataclass(frozen=True, eq=False)
class TimedGraph:
    """A pipeline of one thread, or of the GPU, that works on nothing ahead."""

    pipeline: Any
    runs: int  # that use each held sample once
    batch_size: int
    wait: Callable[[], None]

    def lap_ms(self) -> float:
        """Milliseconds per sample, over all held samples."""
        self.wait()
        started = time.perf_counter()
        for _ in range(self.runs):
            self.pipeline.run()
        self.wait()
        return (time.perf_counter() - started) / (self.runs * self.batch_size) * MS_PER_S


def _timed_graph(work: LoaderWork, samples: Sequence[Arrays], part: Augmentation | None) -> TimedGraph:
    """The pipeline of `part` alone, or of none; warm."""
    source = work.source(work.recipe, on_host=work.shard.on_host)
    is_single = source.is_finished or source.num_on_host > 0
    given = [(image.astype(np.float32) if is_single else image, *others) for image, *others in samples]
    held = HeldSamples(
        samples=tuple(given),
        batch_size=work.rule.batch_size,
        entries=work.entries,
        targets=work.targets,
        in_graph=() if part is None else (part,),
        is_finished=source.is_finished,
        num_on_host=int(is_single),
    )
    settings = GraphSettings(
        batch_size=work.rule.batch_size, num_threads=1, device_id=work.shard.device_id, prefetch=1
    )
    timed = TimedGraph(
        pipeline=training_graph(cast(Any, held), settings),
        runs=len(given) // work.rule.batch_size,
        batch_size=work.rule.batch_size,
        wait=waiter(work.device),
    )
    timed.lap_ms()
    return timed


def _added_ms(timed: TimedGraph, empty: TimedGraph) -> float:
    """What one graph takes beyond another, the two run in turn: a machine's mood falls on both."""
    return median(timed.lap_ms() - empty.lap_ms() for _ in range(ROUNDS))
