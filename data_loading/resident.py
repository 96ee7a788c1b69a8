"""Volumes kept on a device: uploaded once, and the blocks of samples cut from them there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from data_loading.catalogue import Entry
from data_loading.prior_changes import damage_prior
from data_loading.readers import StoredVolume, inner_part, open_case
from data_loading.residency import as_gb
from data_loading.sources import Draws, WindowSource
from utils.contracts import OUTSIDE_LABEL, Shape
from utils.errors import UserError

if TYPE_CHECKING:
    from nvidia.dali.types import SampleInfo

KEPT_BATCHES = 4  # whose draws are remembered: DALI asks for a sample's facts and for its voxels apart


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidentCase:
    """The volumes of one case on the device, in the types they are stored in: (C, D, H, W) and (1, D, H, W).

    The map of a previous stage stays on the host, where it is damaged before it is used.
    """

    image: Tensor
    label: Tensor | None  # int16; None: no mask was drawn
    prior: StoredVolume | None

    def image_block(self, start: Shape, shape: Shape) -> Tensor:
        """The (C, *shape) block whose corner is `start`, 0 beyond the border."""
        return _block(self.image, start, shape, fill=0)

    def label_block(self, start: Shape, shape: Shape) -> Tensor:
        """The mask (1, *shape) int16, OUTSIDE_LABEL beyond the border; without a mask all background."""
        if self.label is not None:
            return _block(self.label, start, shape, fill=OUTSIDE_LABEL)
        inside = torch.zeros((), dtype=torch.int16, device=self.image.device).expand(1, *self.image.shape[1:])
        return _block(inside, start, shape, fill=OUTSIDE_LABEL)


def _block(volume: Tensor, start: Shape, shape: Shape, *, fill: int) -> Tensor:
    """A contiguous copy of the block, the same values that `StoredVolume.block` reads from the file."""
    _, depth, height, width = volume.shape
    inner = inner_part(start, shape, (depth, height, width))
    d, h, w = (slice(low, low + size) for low, size in zip(inner.lower, inner.size, strict=True))
    inside = volume[:, d, h, w]
    if inner.size == shape:
        return inside.clone(memory_format=torch.contiguous_format)
    block = volume.new_full((volume.shape[0], *shape), fill)
    d, h, w = (slice(low, low + size) for low, size in zip(inner.offset, inner.size, strict=True))
    block[:, d, h, w] = inside
    return block


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidentVolumes:
    """The volumes of all cases on one device."""

    device: torch.device
    cases: tuple[ResidentCase, ...]  # in the order of the entries they were uploaded from
    occupied_bytes: int  # by which the device's free memory shrank; without a GPU those of the volumes


def upload(entries: Sequence[Entry], device: torch.device) -> ResidentVolumes:
    """Read every image and mask once and keep it on `device`.

    UserError if they do not fit, DatasetError if a file cannot be read. Returns when the device has them all,
    so that any of its streams may read them from then on.
    """
    free = _free_bytes(device)
    try:
        cases = tuple(_resident_case(entry, device) for entry in entries)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--residency device: the volumes of {len(entries)} cases do not fit into the "
            f"{as_gb(free or 0)} that {device} has free. Choose --residency memory or auto."
        ) from error
    occupied = sum(case.image.nbytes + (0 if case.label is None else case.label.nbytes) for case in cases)
    if free is not None:
        occupied = free - (_free_bytes(device) or 0)
    return ResidentVolumes(device=device, cases=cases, occupied_bytes=occupied)


def _free_bytes(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _resident_case(entry: Entry, device: torch.device) -> ResidentCase:
    stored = open_case(entry, in_memory=True)  # all of it is read, in order
    return ResidentCase(
        image=torch.from_numpy(stored.image.whole()).to(device),
        label=None if stored.label is None else torch.from_numpy(stored.label.whole()).to(device),
        prior=stored.prior,
    )


@final
class ResidentWindows:
    """The samples of a `WindowSource`, their voxels cut on the device that holds the volumes.

    The host draws, as ever from the sample's position alone; only corner and size of the block go to the
    device. DALI takes the facts from one callback and the voxels from another, since an external source is
    wholly on the host or wholly on the device; each may be asked first, and neither keeps a state.

    Order on a GPU. All cuts are queued on `stream`, which nothing else uses, and the external source gets
    this stream as its `cuda_stream`. DALI's documentation of `fn.external_source` (2.4, arguments `source`
    and `cuda_stream`): its copy of a device input is queued on that stream and its own work behind the copy,
    provided that the input is written on that stream only. So a cut is complete before it is copied. Once
    dropped, the cut's memory goes to later tensors of the same stream alone (PyTorch, "CUDA semantics" and
    `Tensor.record_stream`), which are written behind the copy. The volumes never change after `upload` has
    waited for them.
    """

    def __init__(self, draws: WindowSource, volumes: ResidentVolumes) -> None:
        self.draws = draws
        self.volumes = volumes
        is_gpu = volumes.device.type == "cuda"
        self.stream = torch.cuda.Stream(volumes.device) if is_gpu else None
        self._drawn = lru_cache(maxsize=KEPT_BATCHES * draws.rule.batch_size)(draws.draw)

    def facts(self, sample: SampleInfo) -> tuple[np.ndarray, ...]:
        """Entry (1,), weights (2,), and one drawn vector per augmentation, on the host."""
        draws = self._drawn(self.draws.number_of(sample))
        return (*draws.facts(), *draws.values)

    def voxels(self, sample: SampleInfo) -> tuple[Tensor, ...] | tuple[np.ndarray, ...]:
        """Image (C, D, H, W) as stored and label maps (L, D, H, W) int16, on the device."""
        draws = self._drawn(self.draws.number_of(sample))
        case = self.volumes.cases[draws.window.entry]
        with self._queue():
            image = case.image_block(draws.start, draws.shape)
            label = case.label_block(draws.start, draws.shape)
            if case.prior is not None:
                label = torch.cat([label, self._prior(case.prior, draws)])
        # For tensors on the host DALI would ask torch for a CUDA stream, and fail where there is no CUDA.
        return (image, label) if self.stream is not None else (image.numpy(), label.numpy())

    def _prior(self, stored: StoredVolume, draws: Draws) -> Tensor:
        """The previous stage's labels (1, D, H, W), damaged on the host."""
        block = stored.block(draws.start, draws.shape, fill=0).astype(np.int16, copy=False)
        if draws.damage[0]:
            block = damage_prior(block, draws.damage, self.draws.rule.patch)
        return torch.from_numpy(block).to(self.volumes.device)

    def _queue(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
