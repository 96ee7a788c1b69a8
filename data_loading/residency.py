"""Whether the volumes of a run are kept in memory or read from disk window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from data_loading.catalogue import Entry

FREE_SHARE = (
    0.5  # of the free memory that volumes may fill: batches, the network and other users need the rest
)
BYTES_PER_GB = 1e9
CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The choice, and what it follows from."""

    in_memory: bool
    volume_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        place = "kept in memory" if self.in_memory else "read from disk window by window"
        return f"Volumes: {_as_gb(self.volume_bytes)}, {place} ({_as_gb(self.free_bytes)} free)"


def choose_residency(
    wish: Literal["auto", "memory", "disk"], *, volume_bytes: int, free_bytes: int
) -> Residency:
    """The wish, or for auto: memory where the volumes need at most half of what is free."""
    in_memory = volume_bytes <= FREE_SHARE * free_bytes if wish == "auto" else wish == "memory"
    return Residency(in_memory=in_memory, volume_bytes=volume_bytes, free_bytes=free_bytes)


def volume_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of all files that samples are read from: images, masks, maps of a previous stage."""
    paths = (path for entry in entries for path in (entry.case.image, entry.case.label, entry.prior))
    return sum(path.stat().st_size for path in paths if path is not None)


def free_bytes() -> int:
    """Memory that this program may still take, in bytes: the machine's, or less in a container."""
    return min([int(psutil.virtual_memory().available), *_container_bytes(CONTAINER)])


def _container_bytes(folder: Path) -> list[int]:
    """What a limit of control groups (version 2) leaves; the page cache in it can be given up."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    cache = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return [] if limit == "max" else [max(int(limit) - used + cache, 0)]


def _as_gb(number: int) -> str:
    return f"{number / BYTES_PER_GB:.1f} GB"
