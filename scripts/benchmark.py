"""The story of a benchmark: a prepared folder -> the loader of training -> speed, reads, memory."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.options import parse
from utils.storage import to_plain, write_json

if TYPE_CHECKING:
    from scripts.benchmark_record import LoaderRecord

DESCRIPTION = "Measure how fast this machine makes training patches."
RESULT_FILE = "benchmark_loader.json"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is measured, on which data, how long."""

    mode: Literal["loader"] = "loader"
    """loader: read and augment patches, hand them to nobody."""
    data: Path = Path("/data")
    """Folder that holds the preprocessed folders (01_3d, ...), or one such folder itself."""
    task: str = "01"
    """Number, folder name or path of the dataset, as in 04, Task04_Hippocampus."""
    dim: Literal[2, 3] = 3
    """2: the slice-wise plan; 3: the volumetric one."""
    fold: int | None = None
    """Read the training cases of this fold; unset: all cases of the folder."""
    patch: tuple[int, int, int] | None = None
    """Depth, height and width of a patch; unset: from the plan."""
    batch_size: int | None = None
    """Patches per batch; unset: from the plan."""
    oversampling: float = 0.33
    """Share of each batch whose window is centred on a foreground voxel."""
    aug: tuple[str, ...] = ("nnunet",)
    """Presets (nnunet, nvidia, none), parts (noise:probability=0.2), or parts to leave out (no_blur)."""
    augment_in: Literal["auto", "host", "graph"] = "auto"
    """host: compiled loops on the reading threads; graph: DALI operators; auto: graph on a GPU, else host."""
    residency: Literal["auto", "memory", "disk"] = "auto"
    """Volumes kept in memory or read window by window; auto: memory where half of what is free is enough."""
    num_workers: int = 4
    """Threads that make samples; never more than the machine has."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU where there is one."""
    warmup: int = 8
    """Batches before the clock starts, at least 1."""
    train_batches: int = 40
    """Batches of each repeat."""
    repeats: int = 3
    """Repeats, one after the other, of the same loader."""
    operators: bool = False
    """Also measure what every augmentation costs on one core."""
    seed: int = 1
    """Decides the windows and the augmentations."""
    results: Path | None = None
    """Folder for benchmark_loader.json; unset: no file is written."""
    json: bool = False
    """Print one line of JSON on standard output, and the tables on standard error."""


def run(options: BenchmarkOptions) -> LoaderRecord:
    """Measure, show the result, and return it."""
    # Imported here: --help must not wait for torch.
    from scripts.benchmark_loader import measure, plan_of_work
    from scripts.benchmark_operators import operator_costs
    from scripts.benchmark_report import show

    work = plan_of_work(options)
    record = measure(work, options)
    if options.operators:
        record = replace(record, operators=operator_costs(work))
    if options.results is not None:
        write_json(options.results / RESULT_FILE, record)
    show(record, to_stderr=options.json)
    if options.json:
        print(json.dumps(to_plain(record), allow_nan=False), flush=True)
    return record


def main() -> None:
    """Parse the command line and run."""
    run(parse(BenchmarkOptions, sys.argv[1:], program="benchmark.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
