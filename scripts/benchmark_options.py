"""What a benchmark may be told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_loading.options import LoaderOptions
from nnunet.options import LossOptions, NetworkOptions, OptimiserOptions
from utils.prepared_folder import DEFAULT_PLAN

SYNTHETIC = Path("synthetic")  # of --data: no folder
# Channels, depth, height, width of NVIDIA's published figures (Task 01), by --dim.
PUBLISHED_SHAPES: dict[int, tuple[int, int, int, int]] = {3: (4, 128, 128, 128), 2: (4, 1, 192, 160)}


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is measured, on which data, how long."""

    mode: Literal["loader", "train", "predict", "preprocess"] = "loader"
    """loader: make patches, hand them to nobody; train: whole training steps; predict: forward passes and
    whole volumes; preprocess: a raw dataset into a temporary folder."""
    data: Path = Path("/data")
    """Folder that holds the preprocessed folders (01_3d, ...), or one such folder itself; preprocess: the
    folder that holds the raw dataset; the word synthetic (train, predict): no folder, as --input synthetic
    with --shape."""
    input: Literal["real", "synthetic"] = "real"
    """real: patches of --data through the loader; synthetic (train, predict): one random batch on the device,
    used again and again: the speed of the network alone. NVIDIA's --data stays the folder."""
    task: str = "01"
    """Number, folder name or path of the dataset, as in 04, Task04_Hippocampus."""
    dim: Literal[2, 3] = 3
    """2: the slice-wise plan; 3: the volumetric one."""
    plan: str = field(default=DEFAULT_PLAN, metadata={"aliases": ("--plan_name",)})
    """Which plan of the preprocessed folder, by the name that preprocess.py --plan_name gave it; default:
    plan.json."""
    fold: int | None = None
    """Read the training cases of this fold; unset: all cases of the folder."""
    shape: tuple[int, int, int, int] | None = None
    """Synthetic input without a folder: channels, depth, height, width of a patch that a plan is made for;
    unset with --data synthetic: 4 128 128 128, or 4 1 192 160 with --dim 2."""
    preset: Literal["nnunet", "nvidia"] = "nnunet"
    """Rule of the stages for --shape, and the planning rule of --mode preprocess."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxel spacing [mm] for --shape, slices first: it decides which axes are pooled."""
    labels: int = 3
    """Labels for --shape, the background among them."""
    classes: int = 0
    """Classes of a case for --shape; 0: a network that only segments."""
    patch: tuple[int, int, int] | None = None
    """Depth, height and width of a patch; unset: from the plan."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU where there is one."""
    gpus: int = 1
    """GPUs per node, with one process each; with --device cpu, processes per node."""
    nodes: int = 1
    """Number of nodes; torchrun, srun, or NODE_RANK starts the processes of each."""
    affinity: str = "auto"
    """Processors of each GPU's process, as in main.py."""
    amp: bool = False
    """Mixed precision: bfloat16 where the device has it, else float16 with loss scaling on CUDA."""
    compile: bool = False
    """Compile the network with torch.compile; an error where that fails."""
    warmup: int = 8
    """Batches before the clock starts, at least 1."""
    train_batches: int = 40
    """Batches of each repeat (loader, train)."""
    test_batches: int = 40
    """Batches of each repeat (predict)."""
    repeats: int = 3
    """Repeats, one after the other, of the same loader and network."""
    volume: tuple[int, int, int] | None = None
    """Predict, synthetic: the whole volume; unset: twice the patch, 16 slices where the patch is one."""
    volumes: int = 1
    """Predict, real: how many cases of the folder each process predicts whole."""
    val_batch_size: int = 4
    """Predict: windows of a volume that pass through the network at once."""
    overlap: float = 0.5
    """Predict: overlap of neighbouring windows of a volume, 0 to below 1."""
    n_jobs: int = -1
    """Preprocess: processes that work on cases at the same time; -1: one per core."""
    operators: bool = False
    """Loader: also measure what every augmentation costs on one core."""
    seed: int = 1
    """Decides the windows, the augmentations, the weights and synthetic voxels."""
    results: Path | None = None
    """Folder for benchmark_<mode>.json and --logname; unset: no file is written."""
    logname: str = "perf.json"
    """Name of the DLLogger file in --results; lines are appended."""
    json: bool = False
    """Print one line of JSON on standard output, and the tables on standard error."""
    loader: LoaderOptions = LoaderOptions()
    network: NetworkOptions = NetworkOptions()
    loss: LossOptions = LossOptions()
    optimiser: OptimiserOptions = OptimiserOptions()


def with_synthetic_data(options: BenchmarkOptions) -> BenchmarkOptions:
    """The options with `--data synthetic` spelt out as --input and --shape."""
    if options.data != SYNTHETIC:
        return options
    return replace(options, input="synthetic", shape=options.shape or PUBLISHED_SHAPES[options.dim])
