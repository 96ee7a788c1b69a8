"""Whether the volumes of a run are kept on the GPU, in memory, or read from disk window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from data_loading.catalogue import Entry

FREE_SHARE = (
    0.5  # of the free memory that volumes may fill: batches, the network and other users need the rest
)
RESERVED_BYTES = 8_000_000_000  # of a GPU for training: what planning fills with a patch (nnU-Net's 8 GB)
BYTES_PER_GB = 1e9
CONTAINER = Path("/sys/fs/cgroup")

Place = Literal["device", "memory", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The choice, and what it follows from."""

    place: Place
    volume_bytes: int
    free_bytes: int  # of the machine's memory
    device_free_bytes: int | None = None  # of the GPU's; None where no GPU runs the graph
    reserved_bytes: int = RESERVED_BYTES  # of the GPU's, for training

    @property
    def in_memory(self) -> bool:
        """Whether the machine's memory keeps them."""
        return self.place == "memory"

    def __str__(self) -> str:
        size, free, gpu = as_gb(self.volume_bytes), as_gb(self.free_bytes), self.device_free_bytes
        if gpu is None:
            return f"Volumes: {size}, {self._told} ({free} free)"
        rule = (
            f"GPU: {as_gb(gpu)} free, {as_gb(self.reserved_bytes)} reserved for training, half of the rest, "
            f"{as_gb(device_share(gpu, self.reserved_bytes))}, for volumes"
        )
        return f"Volumes: {size}, {self._told} ({free} free; {rule})"

    @property
    def _told(self) -> str:
        return {
            "device": "kept in GPU memory, all of them on each GPU",
            "memory": "kept in memory",
            "disk": "read from disk window by window",
        }[self.place]


def choose_residency(
    wish: Literal["auto", "device", "memory", "disk"],
    *,
    volume_bytes: int,
    free_bytes: int,
    device_free_bytes: int | None = None,
    training_bytes: int = 0,
) -> Residency:
    """The wish, or for auto: the first place that has room, of GPU, memory and disk.

    The GPU has, where one runs the graph, if the volumes need at most half of what is free there beside
    RESERVED_BYTES, or beside `training_bytes` where a step was measured to need more; memory, if they need
    at most half of what is free.
    """
    reserved = max(RESERVED_BYTES, training_bytes)
    share = None if device_free_bytes is None else device_share(device_free_bytes, reserved)
    return Residency(
        place=_roomy(volume_bytes, free_bytes, share) if wish == "auto" else wish,
        volume_bytes=volume_bytes,
        free_bytes=free_bytes,
        device_free_bytes=device_free_bytes,
        reserved_bytes=reserved,
    )


def _roomy(needed: int, free: int, share: int | None) -> Place:
    if share is not None and needed <= share:
        return "device"
    return "memory" if needed <= FREE_SHARE * free else "disk"


def device_share(free: int, reserved: int) -> int:
    """Bytes that volumes may fill on a GPU that has `free` bytes free, `reserved` of them for training."""
    return max(int(FREE_SHARE * (free - reserved)), 0)


def device_free_bytes(device_id: int) -> int:
    """Memory that is free on a GPU, in bytes, whoever uses the rest."""
    return torch.cuda.mem_get_info(device_id)[0]


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


def as_gb(number: int) -> str:
    """A number of bytes for people, as in 3.2 GB."""
    return f"{number / BYTES_PER_GB:.1f} GB"
