"""Case, window and voxels: sources that are pure functions of (seed, global sample index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

import numpy as np

from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.catalogue import Entry
from data_loading.patches import SamplingRule, cut_window, draw_window, generator_for
from utils.contracts import OUTSIDE_LABEL, Shape
from utils.seeding import seed_for
from utils.storage import read_array

if TYPE_CHECKING:
    from nvidia.dali.types import SampleInfo


MAX_OPEN_VOLUMES = 256  # each keeps two file descriptors; systems allow a process 1024 or more


@final
@dataclass(eq=False)
class OpenVolumes:
    """The mapped arrays of the cases read last: opening again costs more than copying a small patch."""

    entries: Sequence[Entry]
    limit: int = MAX_OPEN_VOLUMES
    _open: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __getitem__(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, D, H, W) and label (1, D, H, W) on disk."""
        volumes = self._open.pop(entry, None) or _map_volumes(self.entries[entry])
        if len(self._open) >= self.limit:
            self._open.pop(next(iter(self._open)))  # the one that was used longest ago
        self._open[entry] = volumes
        return volumes

    def __len__(self) -> int:
        return len(self._open)


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
        *,
        rank: int,
        first_step: int = 0,
    ) -> None:
        self.entries = tuple(entries)
        self.rule = rule
        self.recipe = tuple(recipe)
        self.rank = rank
        self.first_step = first_step
        self.stream = seed_for(rule.seed, "windows")
        self.volumes = OpenVolumes(self.entries)

    def __call__(self, sample: SampleInfo) -> tuple[np.ndarray, ...]:
        """Image (C, D, H, W), label (1, D, H, W), entry (1,), weight (1,), one vector per augmentation."""
        rule = self.rule
        step = self.first_step + sample.iteration
        index = (step * rule.world_size + self.rank) * rule.batch_size + sample.idx_in_batch
        random = generator_for(self.stream, index)
        window = draw_window(self.entries, rule, index, random)
        image, label = self.volumes[window.entry]
        context = DrawContext(patch=rule.patch, num_channels=image.shape[0])
        drawn = [part.draw(random, context) for part in self.recipe]
        wide = replace(window, **_widen(window.start, rule.patch, self._source_shape(drawn)))
        return (
            cut_window(image, wide, fill=0.0),
            cut_window(label, wide, fill=OUTSIDE_LABEL),
            np.array([window.entry], np.int64),
            np.array([window.weight], np.float32),
            *drawn,
        )

    def _source_shape(self, drawn: Sequence[np.ndarray]) -> Shape:
        shape = self.rule.patch
        for part, values in zip(self.recipe, drawn, strict=True):
            needed = part.source_shape(values, self.rule.patch)
            shape = (max(shape[0], needed[0]), max(shape[1], needed[1]), max(shape[2], needed[2]))
        return shape


@final
class VolumeSource:
    """Whole volumes in a fixed order, for validation: case `rank`, `rank + world_size`, ..."""

    def __init__(self, entries: Sequence[Entry], *, rank: int, world_size: int) -> None:
        self.entries = tuple(entries)
        # A rank beyond the cases repeats one: it must not miss the exchange of results.
        self.places = tuple(range(rank, len(self.entries), world_size)) or (rank % len(self.entries),)

    def __call__(self, sample: SampleInfo) -> tuple[np.ndarray, ...]:
        """Image (C, D, H, W), label (1, D, H, W), entry (1,) of the next case; after the last, the first."""
        place = self.places[sample.iteration % len(self.places)]
        image, label = _map_volumes(self.entries[place])
        return np.ascontiguousarray(image), np.ascontiguousarray(label), np.array([place], np.int64)


def _map_volumes(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    assert entry.case.label is not None  # build_catalogue refuses such a case
    return read_array(entry.case.image, mapped=True), read_array(entry.case.label, mapped=True)


def _widen(start: Shape, patch: Shape, shape: Shape) -> dict[str, Shape]:
    """The block of `shape` around the patch at `start`."""
    moved = [corner - (wide - size) // 2 for corner, wide, size in zip(start, shape, patch, strict=True)]
    return {"start": (moved[0], moved[1], moved[2]), "shape": shape}
