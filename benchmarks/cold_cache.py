"""What one patch costs while nothing of its volume is in the page cache, for three ways of reading.

python benchmarks/cold_cache.py --data PREPROCESSED_FOLDER [--patch D H W] [--windows 24] [--out FILE.json]

For every window the files of its case are thrown out of the page cache, which needs no special rights, and
the reader cuts the image and the mask. Counted are the bytes of the window, the bytes of the pages that hold
them, the pages that are in the cache afterwards (mincore), what the system fetched from the device for this
process (/proc/self/io), and the time. How much a plain memory map fetches depends on the read-ahead of the
device, which is written down. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_loading.patches import uniform_start  # noqa: E402
from data_loading.readers import open_volume  # noqa: E402
from scripts.benchmark_record import machine_record  # noqa: E402
from utils.contracts import PreprocessedCase, Shape  # noqa: E402
from utils.prepared_folder import list_prepared, read_plan  # noqa: E402
from utils.storage import read_array, write_json  # noqa: E402
from utils.usage import usage_now  # noqa: E402

SCHEMA = 1
MB = 1e6  # bytes
RESIDENT = 1  # the bit of mincore
EVICTION_ATTEMPTS = 5

Cut = Callable[[Shape, Shape], object]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One window by one reader; `resident` and `device` in bytes."""

    reader: str
    case_id: str
    start: Shape
    requested: int  # voxels of the window x bytes of a voxel
    touched: int  # pages that hold them
    resident: int  # pages in the cache afterwards
    device: int  # fetched from the device for this process
    ms: float


def touched_pages(array: np.ndarray, offset: int, start: Shape, shape: Shape) -> int:
    """Pages of a file that a window of its (C, D, H, W) array touches; the array begins at byte `offset`.

    The window lies within the array.
    """
    stride_c, stride_d, stride_h, stride_w = array.strides
    channels, depths, rows = np.ogrid[: array.shape[0], : shape[0], : shape[1]]
    first = (
        offset
        + channels * stride_c
        + (start[0] + depths) * stride_d
        + (start[1] + rows) * stride_h
        + start[2] * stride_w
    ).ravel()
    last = (first + shape[2] * stride_w - 1) // mmap.PAGESIZE
    first = first // mmap.PAGESIZE
    longest = int((last - first).max()) + 1
    pages = first[:, None] + np.arange(longest)
    return len(np.unique(pages[pages <= last[:, None]]))


def resident_pages(path: Path) -> int:
    """Pages of a file that are in the page cache."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as mapping:
        view = np.frombuffer(mapping, np.uint8)  # mapped, never touched: this reads nothing
        states = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size)
        failed = libc.mincore(address, length, ctypes.c_void_p(states.ctypes.data))
        del view  # or the mapping could not be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return int(np.count_nonzero(states & RESIDENT))


def evict(path: Path) -> None:
    """Throw a file out of the page cache; OSError if the file system keeps it (tmpfs), or someone maps it."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # only clean pages leave
        for _ in range(EVICTION_ATTEMPTS):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not (left := resident_pages(path)):
                return
    raise OSError(f"{path}: {left} pages stay in the page cache. Put the folder on a disk, end its readers.")


def plain_mapping(path: Path) -> Cut:
    """NumPy's own memory map, sliced."""
    volume = read_array(path, mapped=True)

    def cut(start: Shape, shape: Shape) -> object:
        d, h, w = (slice(low, low + size) for low, size in zip(start, shape, strict=True))
        return np.array(volume[:, d, h, w])

    return cut


def our_reader(path: Path) -> Cut:
    """The reader of the training loader."""
    volume = open_volume(path, in_memory=False)
    return lambda start, shape: volume.block(start, shape, fill=0)


def whole_file(path: Path) -> Cut:
    """The whole array, of which the window is a part."""

    def cut(start: Shape, shape: Shape) -> object:
        d, h, w = (slice(low, low + size) for low, size in zip(start, shape, strict=True))
        return read_array(path)[:, d, h, w]

    return cut


READERS: dict[str, Callable[[Path], Cut]] = {
    "memmap": plain_mapping,
    "ours": our_reader,
    "whole file": whole_file,
}


def files_of(case: PreprocessedCase) -> list[Path]:
    """What a training sample of this case is cut from."""
    return [path for path in (case.image, case.label) if path is not None]


def measure(reader: str, case: PreprocessedCase, start: Shape, shape: Shape) -> Cost:
    """Cut one window with nothing of its case in the cache.

    The files are opened first: a loader opens them once and keeps them mapped.
    """
    paths = files_of(case)
    for path in paths:
        evict(path)
    cuts = [READERS[reader](path) for path in paths]
    for path in paths:
        evict(path)  # opening has read the header
    before = usage_now()
    for cut in cuts:
        cut(start, shape)
    used = usage_now().since(before)
    resident = sum(resident_pages(path) for path in paths)
    arrays = [read_array(path, mapped=True) for path in paths]
    assert used.device_bytes is not None, "this system does not count what a process reads"
    return Cost(
        reader=reader,
        case_id=case.case_id,
        start=start,
        requested=sum(array.shape[0] * int(np.prod(shape)) * array.itemsize for array in arrays),
        touched=mmap.PAGESIZE
        * sum(touched_pages(array, getattr(array, "offset", 0), start, shape) for array in arrays),
        resident=mmap.PAGESIZE * resident,
        device=used.device_bytes,
        ms=used.wall_s * 1e3,
    )


def measure_windows(
    cases: Sequence[PreprocessedCase], patch: Shape, *, windows: int, seed: int
) -> list[Cost]:
    """The same windows by every reader in turn; a volume that is smaller than the patch is cut whole."""
    random, costs = np.random.default_rng(seed), []
    for number in range(windows):
        case = cases[number % len(cases)]
        depth, height, width = (min(size, limit) for size, limit in zip(patch, case.shape, strict=True))
        shape = (depth, height, width)
        start = uniform_start(case.shape, shape, random)
        costs += [measure(reader, case, start, shape) for reader in READERS]
    return costs


def summarise(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Per reader: medians over the windows, and the totals as multiples of the bytes requested."""
    summary = {}
    for reader in READERS:
        own = [cost for cost in costs if cost.reader == reader]
        requested = sum(cost.requested for cost in own)
        summary[reader] = {
            "windows": len(own),
            "requested_mb": median(cost.requested for cost in own) / MB,
            "touched_mb": median(cost.touched for cost in own) / MB,
            "resident_mb": median(cost.resident for cost in own) / MB,
            "device_mb": median(cost.device for cost in own) / MB,
            "ms": median(cost.ms for cost in own),
            "total_device_mb": sum(cost.device for cost in own) / MB,
            "total_touched_per_requested": sum(cost.touched for cost in own) / requested,
            "total_device_per_requested": sum(cost.device for cost in own) / requested,
            "total_device_per_touched": sum(cost.device for cost in own) / sum(cost.touched for cost in own),
        }
    return summary


def read_ahead_kib(folder: Path) -> int | None:
    """The system's read-ahead for the device that holds `folder`."""
    number = folder.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
    return int(path.read_text()) if path.is_file() else None


def show(summary: dict[str, dict[str, float]]) -> None:
    """The table for people."""
    table = Table("reader", title="One patch, image and mask, cold cache: medians", title_justify="left")
    columns = {
        "requested_mb": "MB cut",
        "touched_mb": "pages, MB",
        "resident_mb": "cached, MB",
        "device_mb": "device, MB",
        "ms": "ms",
        "total_device_per_requested": "device / cut",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for reader, values in summary.items():
        table.add_row(reader, *(f"{values[column]:.2f}" for column in columns))
    Console().print(table)


def main() -> None:
    """Measure, show, and write the JSON."""
    parser = argparse.ArgumentParser(description="What one patch costs on a cold page cache.")
    parser.add_argument("--data", type=Path, required=True, help="preprocessed folder")
    parser.add_argument("--patch", type=int, nargs=3, help="depth height width; default: the plan's")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    plan = read_plan(chosen.data)
    depth, height, width = chosen.patch or plan.patch
    patch = (depth, height, width)
    costs = measure_windows(list_prepared(chosen.data), patch, windows=chosen.windows, seed=chosen.seed)
    summary = summarise(costs)
    result = {
        "schema": SCHEMA,
        "machine": machine_record(None),
        "dataset": plan.dataset,
        "patch": patch,
        "page_bytes": mmap.PAGESIZE,
        "read_ahead_kib": read_ahead_kib(chosen.data),
        "summary": summary,
        "windows": costs,
    }
    if chosen.out is not None:
        write_json(chosen.out, result)
    show(summary)
    print(json.dumps(summary))  # noqa: T201


if __name__ == "__main__":
    main()
