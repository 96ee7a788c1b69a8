"""Counts what samples cut from storage: bytes and time, block by block."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast, final

import numpy as np

from data_loading.readers import OpenCases, StoredCase, StoredVolume
from data_loading.sources import WindowSource
from utils.contracts import Shape


@final
@dataclass(eq=False)
class ReadMeter:
    """Counts what blocks are cut from the volumes of a source, and the time that copying them takes."""

    cases: OpenCases
    bytes: int = 0
    seconds: float = 0.0

    def __getitem__(self, entry: int) -> StoredCase:
        """The volumes of an entry, metered."""
        case = self.cases[entry]
        volumes = {
            name.name: MeteredVolume(volume, self)
            for name in fields(case)
            if (volume := getattr(case, name.name)) is not None
        }
        return replace(case, **cast(Any, volumes))


@final
@dataclass(frozen=True, eq=False)
class MeteredVolume:
    """A stored volume whose blocks are counted."""

    volume: StoredVolume
    meter: ReadMeter

    @property
    def voxels(self) -> np.ndarray:
        """The mapped array."""
        return self.volume.voxels

    def block(self, start: Shape, shape: Shape, *, fill: float) -> np.ndarray:
        """The volume's block."""
        return self._count(start, shape, lambda: self.volume.block(start, shape, fill=fill))

    def single_precision_block(self, start: Shape, shape: Shape) -> np.ndarray:
        """The volume's block as float32."""
        return self._count(start, shape, lambda: self.volume.single_precision_block(start, shape))

    def fetched(self, start: Shape, shape: Shape) -> np.ndarray:
        """The volume's voxels; whoever asked reads the block from them, and that time is its own."""
        self.meter.bytes += self._bytes(start, shape)
        return self.volume.fetched(start, shape)

    def _count(self, start: Shape, shape: Shape, read: Callable[[], np.ndarray]) -> np.ndarray:
        started = time.perf_counter()
        block = read()
        self.meter.seconds += time.perf_counter() - started
        self.meter.bytes += self._bytes(start, shape)
        return block

    def _bytes(self, start: Shape, shape: Shape) -> int:
        """Stored bytes of the part of a block that lies in the volume."""
        channels, *limits = self.voxels.shape
        inside = [
            max(min(low + size, limit) - max(low, 0), 0)
            for low, size, limit in zip(start, shape, limits, strict=True)
        ]
        return channels * int(np.prod(inside)) * self.voxels.dtype.itemsize


def metered(source: WindowSource) -> ReadMeter:
    """From now on, count what `source` reads."""
    meter = ReadMeter(source.cases)
    source.cases = cast(Any, meter)
    return meter
