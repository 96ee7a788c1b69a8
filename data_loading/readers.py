"""Preprocessed arrays on disk: only the voxels of a window are read, and only once a sample asks for them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import final

import numpy as np

from data_loading.catalogue import Entry
from data_loading.kernels.half import copy_halves
from utils.contracts import OUTSIDE_LABEL, Shape
from utils.errors import DatasetError
from utils.storage import read_array

ADVICE_BYTES = 128 * 1024  # Linux reads no more at one request than its read-ahead, usually this
MAX_OPEN_CASES = 256  # each keeps two or three file descriptors; systems allow a process 1024 or more


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredVolume:
    """A (C, D, H, W) .npy file, mapped: voxels stay on disk until a block of them is asked for.

    With `in_memory` the system is asked to read the file ahead as a whole, and keeps it in its page cache,
    which all processes of a machine share. Otherwise the pages of each block are asked for at once, and no
    others: the system's own read-ahead would fetch several times as many.
    """

    path: Path
    voxels: np.ndarray
    mapping: mmap.mmap
    first_byte: int  # of the voxels, in the mapping
    in_memory: bool

    def block(self, start: Shape, shape: Shape, *, fill: float) -> np.ndarray:
        """The (C, *shape) block whose corner is `start`, `fill` beyond the border; in the stored type."""
        inner = inner_part(start, shape, self._shape())
        self._fetch(inner)
        d, h, w = (slice(low, low + size) for low, size in zip(inner.lower, inner.size, strict=True))
        inside = self.voxels[:, d, h, w]
        if inner.size == shape:
            return np.array(inside, order="C")
        block = np.full((self.voxels.shape[0], *shape), fill, self.voxels.dtype)
        d, h, w = (slice(low, low + size) for low, size in zip(inner.offset, inner.size, strict=True))
        block[:, d, h, w] = inside
        return block

    def block_inside(self, start: Shape, shape: Shape) -> np.ndarray:
        """(1, *shape) int16: 0 where a block lies in the volume, OUTSIDE_LABEL beyond; nothing is read."""
        inner = inner_part(start, shape, self._shape())
        block = np.full((1, *shape), OUTSIDE_LABEL, np.int16)
        d, h, w = (slice(low, low + size) for low, size in zip(inner.offset, inner.size, strict=True))
        block[:, d, h, w] = 0
        return block

    def single_precision_block(self, start: Shape, shape: Shape) -> np.ndarray:
        """The same block as float32, 0 beyond the border; half precision is converted on the way."""
        if self.voxels.dtype != np.float16:
            return self.block(start, shape, fill=0.0)
        inner = inner_part(start, shape, self._shape())
        self._fetch(inner)
        make = np.empty if inner.size == shape else np.zeros
        block = make((self.voxels.shape[0], *shape), np.float32)
        places = (np.array(values, np.int64) for values in (inner.lower, inner.offset, inner.size))
        copy_halves(self.voxels.view(np.uint16), block, *places)
        return block

    def fetched(self, start: Shape, shape: Shape) -> np.ndarray:
        """All voxels (C, D, H, W), read-only; the pages of this block are on their way, no others."""
        self._fetch(inner_part(start, shape, self._shape()))
        return self.voxels

    def whole(self) -> np.ndarray:
        """A copy of all voxels."""
        return self.block((0, 0, 0), self._shape(), fill=0.0)

    def _shape(self) -> Shape:
        _, depth, height, width = self.voxels.shape
        return depth, height, width

    def _fetch(self, inner: Inside) -> None:
        """Ask for the pages of a block, all at once, before the first of them is waited for."""
        # A page that lies behind the end of a shortened file would kill the process without a word.
        if self.mapping.size() < len(self.mapping):
            raise DatasetError(
                f"{self.path} became shorter while it was read. "
                "Run preprocess.py again, then main.py with --resume_training."
            )
        if self.in_memory or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for first, stop in _spans(self.voxels, inner):
            _will_need(self.mapping, self.first_byte + first, self.first_byte + stop)


def open_volume(path: Path, *, in_memory: bool) -> StoredVolume:
    """Map the array at `path`; DatasetError if it is none."""
    mapped = read_array(path, mapped=True)
    assert isinstance(mapped, np.memmap)
    mapping = mapped.base
    assert isinstance(mapping, mmap.mmap)
    if hasattr(mapping, "madvise"):
        if in_memory:
            _will_need(mapping, 0, len(mapping))
        else:
            mapping.madvise(mmap.MADV_RANDOM)
    return StoredVolume(
        path=path,
        voxels=np.asarray(mapped),
        mapping=mapping,
        first_byte=mapped.offset % mmap.ALLOCATIONGRANULARITY,
        in_memory=in_memory,
    )


def _will_need(mapping: mmap.mmap, first: int, stop: int) -> None:
    """Ask the system to read these bytes, without waiting for them."""
    begin = first // mmap.PAGESIZE * mmap.PAGESIZE
    for start in range(begin, stop, ADVICE_BYTES):
        mapping.madvise(mmap.MADV_WILLNEED, start, min(ADVICE_BYTES, stop - start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """The part of a block that lies in the volume: its corner there, its corner in the block, its size."""

    lower: Shape
    offset: Shape
    size: Shape


def inner_part(start: Shape, shape: Shape, limits: Shape) -> Inside:
    """What of the block with corner `start` lies in a volume of the shape `limits`; sizes 0 where nothing."""
    axes = []
    for first, size, limit in zip(start, shape, limits, strict=True):
        lower = min(max(first, 0), limit)
        axes.append((lower, min(lower - first, size), max(min(first + size, limit) - lower, 0)))
    lower, offset, size = zip(*axes, strict=True)
    return Inside(lower=lower, offset=offset, size=size)


def _spans(voxels: np.ndarray, inner: Inside) -> list[tuple[int, int]]:
    """First byte and end of the stretches that a block covers; gaps shorter than a page do not count."""
    if 0 in inner.size:
        return []
    channels, depths, rows, columns = voxels.strides
    corner = sum(low * stride for low, stride in zip(inner.lower, voxels.strides[1:], strict=True))
    row_bytes = inner.size[2] * columns
    by_row = rows - row_bytes >= mmap.PAGESIZE
    stretches = inner.size[1] if by_row else 1
    length = row_bytes if by_row else (inner.size[1] - 1) * rows + row_bytes
    starts = [
        corner + channel * channels + depth * depths + stretch * rows
        for channel in range(voxels.shape[0])
        for depth in range(inner.size[0])
        for stretch in range(stretches)
    ]
    return [(first, first + length) for first in starts]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredCase:
    """The volumes of one case: image, and label maps that move with it (the mask, a previous stage's)."""

    image: StoredVolume
    label: StoredVolume | None  # None: no mask was drawn
    prior: StoredVolume | None

    def label_volumes(self) -> tuple[StoredVolume, ...]:
        """The label maps that exist, mask first."""
        return tuple(volume for volume in (self.label, self.prior) if volume is not None)

    def label_block(self, start: Shape, shape: Shape) -> np.ndarray:
        """Label maps (L, *shape) int16: the mask, then the prior; OUTSIDE_LABEL beyond the volume.

        A case without a mask is all background: only its weight, 0, may say that nobody has looked.
        """
        if self.label is None:
            mask = self.image.block_inside(start, shape)
        else:
            mask = self.label.block(start, shape, fill=OUTSIDE_LABEL)
        if self.prior is None:
            return mask
        return np.concatenate([mask, self.prior.block(start, shape, fill=0).astype(np.int16, copy=False)])


@final
@dataclass(eq=False)
class OpenCases:
    """The mapped volumes of the cases read last: opening again costs more than copying a small patch.

    Threads may ask at the same time; a case that is dropped stays mapped until its last reader is done.
    """

    entries: Sequence[Entry]
    in_memory: bool = False
    limit: int = MAX_OPEN_CASES
    _open: dict[int, StoredCase] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __getitem__(self, entry: int) -> StoredCase:
        """The volumes of the entry at this position."""
        with self._lock:
            case = self._open.pop(entry, None) or open_case(self.entries[entry], in_memory=self.in_memory)
            if len(self._open) >= self.limit:
                self._open.pop(next(iter(self._open)))  # the one that was used longest ago
            self._open[entry] = case
            return case

    def __len__(self) -> int:
        return len(self._open)


def open_case(entry: Entry, *, in_memory: bool) -> StoredCase:
    """Map the files of one case."""
    paths = (entry.case.label, entry.prior)
    label, prior = (None if path is None else open_volume(path, in_memory=in_memory) for path in paths)
    return StoredCase(image=open_volume(entry.case.image, in_memory=in_memory), label=label, prior=prior)
