"""Case, window and voxels: sources that are pure functions of (seed, global sample index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.catalogue import Entry
from data_loading.headers import read_header
from data_loading.patches import SamplingRule, Window, draw_window, generator_for, stream_index
from data_loading.prior_changes import damage_prior, draw_damage
from data_loading.readers import OpenCases, open_case
from data_loading.targets import TargetRule, targets_on_host
from data_loading.workers import AheadOfUse
from utils.contracts import Shape
from utils.seeding import seed_for

if TYPE_CHECKING:
    from nvidia.dali.types import SampleInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where a source stands and how it works; none of this changes a sample.

    `on_host`: augmentations with a twin run on the threads that read, up to the first without one.
    """

    rank: int = 0
    first_step: int = 0
    on_host: bool = False
    threads: int = 0  # 0: the sample is made by the thread that asks for it
    ahead: int = 4  # samples made beyond the one asked for
    in_memory: bool = False
    channels_last: bool = False  # finished images leave as (D, H, W, C)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """Everything random about one sample; no voxel is read for it.

    `start` and `shape` are those of the block that the sample needs, around its window.
    """

    window: Window
    values: tuple[np.ndarray, ...]  # one vector per augmentation of the recipe
    damage: np.ndarray  # of the previous stage's labels
    start: Shape
    shape: Shape
    has_mask: bool

    def facts(self) -> tuple[np.ndarray, np.ndarray]:
        """Entry (1,) int64, and weights (2,) float32: of the case, and of its mask."""
        weight = self.window.weight
        return np.array([self.window.entry], np.int64), np.array([weight, weight * self.has_mask], np.float32)


@final
class WindowSource:
    """Draws everything about a sample, then reads only the voxels of its window.

    DALI calls it with the sample's position, counted from `first_step`; because the answer depends on nothing
    else, resuming needs no state, and rank, epoch and resume cannot lose or double a case.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        rule: SamplingRule,
        recipe: Sequence[Augmentation],
        targets: TargetRule,
        settings: SourceSettings,
    ) -> None:
        self.entries = tuple(entries)
        self.rule = rule
        self.recipe = tuple(recipe)
        self.targets = targets
        self.settings = settings
        self.num_on_host = _leading_twins(recipe) if settings.on_host else 0
        self.stream = seed_for(rule.seed, "windows")
        self.num_channels = read_header(entries[0].case.image).shape[0]  # the catalogue holds all to it
        self.cases = OpenCases(self.entries, in_memory=settings.in_memory)
        self._ahead = (
            AheadOfUse(self.make, threads=settings.threads, ahead=settings.ahead)
            if settings.threads
            else None
        )

    @property
    def is_finished(self) -> bool:
        """Whether samples leave with all augmentations and targets done, so that the graph has no work."""
        return self.settings.on_host and self.num_on_host == len(self.recipe)

    @property
    def in_graph(self) -> tuple[Augmentation, ...]:
        """The augmentations left to the graph; each sample carries one drawn vector for each of them."""
        return self.recipe[self.num_on_host :]

    def __call__(self, sample: SampleInfo) -> tuple[np.ndarray, ...]:
        """Image (C, D, H, W), entry (1,), weights (2,), label maps or targets, one vector per `in_graph`.

        A finished image is (D, H, W, C) with `channels_last`.
        """
        number = self.number_of(sample)
        return self.make(number) if self._ahead is None else self._ahead.take(number)

    def number_of(self, sample: SampleInfo) -> int:
        """The place of DALI's sample among those of this rank, counted from `first_step`."""
        return sample.iteration * self.rule.batch_size + sample.idx_in_batch

    def draw(self, number: int) -> Draws:
        """What is random about sample `number` of this rank."""
        rule = self.rule
        step, place = divmod(number, rule.batch_size)
        index = ((self.settings.first_step + step) * rule.world_size + self.settings.rank) * rule.batch_size
        index += place
        random = generator_for(self.stream, stream_index(rule, index))
        window = draw_window(self.entries, rule, index, random)
        context = DrawContext(
            patch=rule.patch, num_channels=self.num_channels, place=index - stream_index(rule, index)
        )
        values = tuple(part.draw(random, context) for part in self.recipe)
        damage = self._draw_damage(random)
        start, shape = self._block(window, values)
        return Draws(
            window=window,
            values=values,
            damage=damage,
            start=start,
            shape=shape,
            has_mask=self.entries[window.entry].case.label is not None,
        )

    def make(self, number: int) -> tuple[np.ndarray, ...]:
        """Sample `number` of this rank, counted from `first_step`."""
        draws = self.draw(number)
        image, label = self._voxels(draws)
        labels = [label]
        if self.is_finished:
            image, labels = targets_on_host(image, label, self.targets)
            if self.settings.channels_last:
                image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        return (image, *draws.facts(), *labels, *draws.values[self.num_on_host :])

    def _draw_damage(self, random: np.random.Generator) -> np.ndarray:
        """How the previous stage's labels change; a recipe of nothing leaves them as they are, too."""
        if self.recipe and self.targets.prior_labels:
            return draw_damage(random, self.targets.prior_labels)
        return np.zeros(1, np.float32)

    def _voxels(self, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Image and label maps of a sample, as far as the host augments them."""
        case, damage = self.cases[draws.window.entry], draws.damage
        start, shape = draws.start, draws.shape
        on_host = list(zip(self.recipe, draws.values, strict=True))[: self.num_on_host]
        is_stored = case.label is not None and not damage[0]
        if is_stored and on_host and on_host[0][0].reads and on_host[0][1][0]:
            (first, values), *on_host = on_host
            image, label = first.read(case, draws.window.start, values)
        else:
            label = case.label_block(start, shape)
            if damage[0]:
                label[1:] = damage_prior(label[1:], damage, self.rule.patch)
            if self.num_on_host or self.is_finished:
                image = case.image.single_precision_block(start, shape)
            else:
                image = case.image.block(start, shape, fill=0.0)
        for part, values in on_host:
            if values[0] or (part.reads and image.shape[1:] != self.rule.patch):
                image, label = part.compute(image, label, values)
        return image, label

    def _block(self, window: Window, drawn: Sequence[np.ndarray]) -> tuple[Shape, Shape]:
        """Corner and shape of the block that this sample needs, around its patch."""
        patch = self.rule.patch
        needs = [part.source_shape(values, patch) for part, values in zip(self.recipe, drawn, strict=True)]
        depth, height, width = (max(sizes) for sizes in zip(patch, *needs, strict=True))
        z, y, x = (
            corner - (wide - size) // 2
            for corner, wide, size in zip(window.start, (depth, height, width), patch, strict=True)
        )
        return (z, y, x), (depth, height, width)

    def close(self) -> None:
        """End the threads."""
        if self._ahead is not None:
            self._ahead.close()


def _leading_twins(recipe: Sequence[Augmentation]) -> int:
    return next((place for place, part in enumerate(recipe) if not part.has_twin), len(recipe))


@final
class VolumeSource:
    """Whole volumes in a fixed order, for validation: case `rank`, `rank + world_size`, ..."""

    def __init__(self, entries: Sequence[Entry], *, rank: int, world_size: int) -> None:
        self.entries = tuple(entries)
        # A rank beyond the cases repeats one: it must not miss the exchange of results.
        self.places = tuple(range(rank, len(self.entries), world_size)) or (rank % len(self.entries),)

    def __call__(self, sample: SampleInfo) -> tuple[np.ndarray, ...]:
        """Image (C, D, H, W), entry (1,), weights (2,), label maps of the next case; then from the first."""
        place = self.places[sample.iteration % len(self.places)]
        case = open_case(self.entries[place], in_memory=True)  # all of it is read, in order
        label = case.label_block((0, 0, 0), self.entries[place].shape)
        weights = np.array([1.0, case.label is not None], np.float32)
        return case.image.whole(), np.array([place], np.int64), weights, label
