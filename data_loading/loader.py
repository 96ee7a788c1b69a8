"""Pipeline -> iterator of Batch: epochs, global-rank shards, and a state that resumes at the next batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from data_loading.augmentations.base import Augmentation
from data_loading.catalogue import Entry
from data_loading.graphs import GraphSettings, training_graph, volume_graph
from data_loading.patches import SamplingRule, steps_in_epoch
from data_loading.readers import VolumeSource, WindowSource
from utils.contracts import Batch, Shape
from utils.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of the work this process does, and on which device; `rank` counts over all nodes."""

    rank: int = 0
    world_size: int = 1
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2


@final
class TrainingLoader:
    """Endless augmented patches, cut into epochs of `len(loader)` steps.

    `state_dict` holds the number of batches delivered and DALI's own checkpoint; a loader that loads it
    delivers, bit for bit, the batches that would have followed. It has a length so that Lightning does not
    fetch one batch ahead of the position it saves.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        rule: SamplingRule,
        recipe: Sequence[Augmentation],
        target_shapes: Sequence[Shape],
        shard: Shard,
    ) -> None:
        self.entries = tuple(entries)
        self.rule = rule
        self.recipe = tuple(recipe)
        self.target_shapes = tuple(target_shapes)
        self.shard = shard
        self.delivered = 0
        self.waited_seconds = 0.0
        self._checkpoint: str | None = None
        self._pipeline = None

    def __len__(self) -> int:
        return steps_in_epoch(self.rule, len(self.entries))

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.delivered % len(self), len(self)):
            started = time.perf_counter()
            batch = self._next_batch()
            self.waited_seconds += time.perf_counter() - started
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain values: position, and the pipeline's random state as text."""
        state = self._pipeline.checkpoint() if self._pipeline is not None else self._checkpoint
        return {"delivered": self.delivered, "pipeline": state, "layout": self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that `state` was saved behind; DatasetError if the layout has changed."""
        if state["layout"] != self._layout():
            raise DatasetError(
                f"The checkpoint's loader had {state['layout']}, this run has {self._layout()}. "
                "Resume with the same data, batch size, steps, seed and number of devices."
            )
        self.delivered = state["delivered"]
        self._checkpoint = state["pipeline"]
        self._pipeline = None

    def _layout(self) -> dict[str, Any]:
        """What must not change between saving and resuming."""
        rule = self.rule
        return {
            "cases": len(self.entries),
            "batch_size": rule.batch_size,
            "devices": rule.world_size,
            "steps_per_epoch": rule.steps_per_epoch,
            "seed": rule.seed,
            "augmentations": [part.name for part in self.recipe],
        }

    def _next_batch(self) -> Batch:
        if self._pipeline is None:
            shard = self.shard
            settings = GraphSettings(
                batch_size=self.rule.batch_size,
                num_threads=shard.num_threads,
                device_id=shard.device_id,
                # One stream per rank; the windows come from the global index instead.
                seed=self.rule.seed + shard.rank,
                prefetch=shard.prefetch,
                checkpoint=self._checkpoint,
            )
            source = WindowSource(self.entries, self.rule, self.recipe, rank=shard.rank)
            self._pipeline = training_graph(source, self.recipe, self.target_shapes, settings)
        image, entry, weight, *labels = (_as_tensor(output) for output in self._pipeline.run())
        return _assemble(self.entries, entry, image, tuple(labels), weight)


@final
class VolumeLoader:
    """Whole validation volumes, one per step, each case on exactly one rank."""

    def __init__(self, entries: Sequence[Entry], shard: Shard) -> None:
        self.entries = tuple(entries)
        self.shard = shard
        self.source = VolumeSource(entries, rank=shard.rank, world_size=shard.world_size)
        self._pipeline = None

    def __len__(self) -> int:
        return len(self.source.places)

    def __iter__(self) -> Iterator[Batch]:
        if self._pipeline is None and len(self):
            settings = GraphSettings(
                batch_size=1,
                num_threads=1,
                device_id=self.shard.device_id,
                seed=0,
                prefetch=1,  # whole volumes: one ahead is all the memory they deserve
            )
            self._pipeline = volume_graph(self.source, settings)
        for _ in range(len(self)):
            image, entry, label = (_as_tensor(output) for output in self._pipeline.run())
            yield _assemble(self.entries, entry, image, (label,), None)


def _as_tensor(output: Any) -> Tensor:
    """A DALI output as a torch tensor on the same device, without a copy."""
    return torch.from_dlpack(output.as_tensor())


def _assemble(
    entries: Sequence[Entry], entry: Tensor, image: Tensor, label: tuple[Tensor, ...], weight: Tensor | None
) -> Batch:
    # The indices stay on the host in every graph, so reading them does not wait for a device.
    cases = [entries[place].case for place in entry.flatten().tolist()]
    target = torch.tensor([case.class_target for case in cases], dtype=torch.int64, device=image.device)
    return Batch(
        image=image,
        label=label,
        class_target=target,
        case_weights=None if weight is None else weight.flatten().to(image.device, non_blocking=True),
        case_ids=tuple(case.case_id for case in cases),
    )
