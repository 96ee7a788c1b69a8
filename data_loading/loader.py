"""Pipeline -> iterator of Batch: epochs, global-rank shards, and a state that resumes at the next batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from data_loading.augmentations.base import Augmentation
from data_loading.catalogue import Entry
from data_loading.graphs import GraphSettings, training_graph, volume_graph
from data_loading.patches import SamplingRule, steps_in_epoch
from data_loading.recipes import is_recipe, told_parts
from data_loading.resident import ResidentVolumes, ResidentWindows
from data_loading.sources import SourceSettings, VolumeSource, WindowSource
from data_loading.targets import TargetRule
from utils.contracts import Batch
from utils.errors import DatasetError

PAGE_LOCKED = 3  # kDLCUDAHost of DLPack


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of the work this process does, where and how; `rank` counts over all nodes.

    With `on_host` augmentations run as compiled loops on the threads that read, else as DALI operators.
    `in_memory`: the volumes fit into the machine's memory and are kept there; `resident`: those of all
    training cases lie on the device, in the entries' order, and patches are cut there (not with `on_host`).
    With `channels_last` images have the strides of channels-last tensors; shapes and values are the same.
    """

    rank: int = 0
    world_size: int = 1
    device_id: int | None = None
    num_threads: int = 2
    prefetch: int = 2
    on_host: bool = False
    in_memory: bool = False
    resident: ResidentVolumes | None = None
    channels_last: bool = False


@final
class TrainingLoader:
    """Endless augmented patches, cut into epochs of `len(loader)` steps.

    Batch n of a rank is a function of the seed, so `state_dict` holds nothing but the number of batches
    delivered; a loader of any rank that loads it delivers, bit for bit, the batches that would have followed.
    It has a length so that Lightning does not fetch one batch ahead of the position it saves.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        rule: SamplingRule,
        recipe: Sequence[Augmentation],
        targets: TargetRule,
        shard: Shard,
    ) -> None:
        self.entries = tuple(entries)
        self.rule = rule
        self.recipe = tuple(recipe)
        self.targets = targets
        self.shard = shard
        self.delivered = 0
        self.waited_seconds = 0.0
        self._source: WindowSource | None = None
        self._pipeline: Pipeline | None = None

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
        """Plain values: the position, and what must not change before it is loaded."""
        return {"delivered": self.delivered, "layout": self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that `state` was saved behind; DatasetError if the layout has changed."""
        saved, own = state["layout"], self._layout()
        changed = [name for name in own if saved.get(name) != own[name]]
        if "augmentations" in changed and is_recipe(saved.get("augmentations") or [], self.recipe):
            changed.remove("augmentations")
        if changed:
            before = ", ".join(f"{name} {saved.get(name)}" for name in changed)
            after = ", ".join(f"{name} {own[name]}" for name in changed)
            raise DatasetError(
                f"The checkpoint's loader had {before}; this run has {after}. "
                "Resume with the same cases and options as before, or start a new run."
            )
        self.delivered = state["delivered"]
        self.close()

    def close(self) -> None:
        """Give back threads and buffers; the next batch builds them again."""
        if self._source is not None:
            self._source.close()
        self._source = self._pipeline = None

    def _layout(self) -> dict[str, Any]:
        """What must not change between saving and resuming."""
        rule = self.rule
        names = "\n".join(entry.case.case_id for entry in self.entries)
        return {
            "cases": len(self.entries),
            "case_ids_hash": _short_hash(names),
            "masks": sum(entry.case.label is not None for entry in self.entries),
            "patch": list(rule.patch),
            "batch_size": rule.batch_size,
            "devices": rule.world_size,
            "steps_per_epoch": rule.steps_per_epoch,
            "step_limit": rule.step_limit,
            "foreground_share": rule.foreground_share,
            "lesion_share": rule.lesion_share,
            "balanced_classes": _short_hash(repr(rule.case_limits)) if rule.case_limits else None,
            "volumes_per_batch": rule.num_volumes,
            "seed": rule.seed,
            "prior_labels": self.targets.prior_labels,
            "augmentations": told_parts(self.recipe),
        }

    def _next_batch(self) -> Batch:
        if self._pipeline is None:
            self._source, self._pipeline = self._build()
        image, entry, weights, *labels = (_as_tensor(output) for output in self._pipeline.run())
        return _assemble(self.entries, entry, _channels_first(image, self.shard), tuple(labels), weights)

    def _build(self) -> tuple[WindowSource, Pipeline]:
        shard, batch_size = self.shard, self.rule.batch_size
        source = SourceSettings(
            rank=shard.rank,
            first_step=self.delivered,
            on_host=shard.on_host,
            threads=shard.num_threads if shard.resident is None else 0,  # there is nothing to read
            ahead=batch_size + shard.num_threads,  # DALI itself fetches `prefetch` batches ahead of this
            in_memory=shard.in_memory,
            channels_last=shard.channels_last,
        )
        windows = WindowSource(self.entries, self.rule, self.recipe, self.targets, source)
        settings = GraphSettings(
            batch_size=batch_size,
            num_threads=1 if windows.is_finished else shard.num_threads,
            device_id=shard.device_id,
            prefetch=shard.prefetch,
            channels_last=shard.channels_last,
        )
        resident = None if shard.resident is None else ResidentWindows(windows, shard.resident)
        return windows, training_graph(windows, settings, resident)


@final
class VolumeLoader:
    """Whole validation volumes, one per step, each case on exactly one rank."""

    def __init__(self, entries: Sequence[Entry], targets: TargetRule, shard: Shard) -> None:
        self.entries = tuple(entries)
        self.targets = targets
        self.shard = shard
        self.source = VolumeSource(entries, rank=shard.rank, world_size=shard.world_size)
        self._pipeline: Pipeline | None = None

    def __len__(self) -> int:
        return len(self.source.places)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            image, entry, weights, label = (_as_tensor(output) for output in self._built().run())
            yield _assemble(self.entries, entry, _channels_first(image, self.shard), (label,), weights)

    def _built(self) -> Pipeline:
        if self._pipeline is None:
            settings = GraphSettings(
                batch_size=1,
                num_threads=1,
                device_id=self.shard.device_id,
                prefetch=1,  # whole volumes: one ahead is all the memory they deserve
                channels_last=self.shard.channels_last,
            )
            self._pipeline = volume_graph(self.source, self.targets, settings)
        return self._pipeline


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _as_tensor(output: Any) -> Tensor:
    """A DALI output as a torch tensor on the same device, without a copy.

    Except for page-locked memory of the host, which torch does not take from another library.
    """
    tensor = output.as_tensor()
    if tensor.__dlpack_device__()[0] == PAGE_LOCKED:
        return torch.from_numpy(np.array(tensor))
    return torch.from_dlpack(tensor)


def _channels_first(image: Tensor, shard: Shard) -> Tensor:
    """(B, C, D, H, W) whatever the order in memory, which the network takes from the strides."""
    return image.permute(0, 4, 1, 2, 3) if shard.channels_last else image


def _assemble(
    entries: Sequence[Entry], entry: Tensor, image: Tensor, label: tuple[Tensor, ...], weights: Tensor
) -> Batch:
    # Indices and weights stay on the host in every graph, so reading them does not wait for a device.
    cases = [entries[place].case for place in entry.flatten().tolist()]
    target = torch.tensor([case.class_target for case in cases], dtype=torch.int64)
    return Batch(
        image=image,
        label=label,
        class_target=_beside(target, image),
        case_weights=_beside(weights[:, 0].clone(), image),
        mask_weights=_beside(weights[:, 1].clone(), image),
        case_ids=tuple(case.case_id for case in cases),
        num_counted=int((weights[:, 0] > 0).sum()),
    )


def _beside(values: Tensor, image: Tensor) -> Tensor:
    """`values` on the device of `image`, without waiting for what that device still has to do."""
    return values if image.device.type == "cpu" else values.pin_memory().to(image.device, non_blocking=True)
