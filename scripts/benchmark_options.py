"""What a benchmark may be told, and the combinations that measure nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet.options import NetworkOptions, OptimiserOptions
from utils.errors import UserError

COUNTS = (
    "warmup",
    "train_batches",
    "test_batches",
    "repeats",
    "num_workers",
    "prefetch",
    "volumes",
    "val_batch_size",
)
NETWORK_MODES = ("train", "predict")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is measured, on which data, how long."""

    mode: Literal["loader", "train", "predict", "preprocess"] = "loader"
    """loader: make patches, hand them to nobody; train: whole training steps; predict: forward passes and
    whole volumes; preprocess: a raw dataset into a temporary folder."""
    data: Path = Path("/data")
    """Folder that holds the preprocessed folders (01_3d, ...), or one such folder itself; preprocess: the
    folder that holds the raw dataset."""
    input: Literal["real", "synthetic"] = "real"
    """real: patches of --data through the loader; synthetic (train, predict): one random batch on the device,
    used again and again: the speed of the network alone. NVIDIA's --data stays the folder."""
    task: str = "01"
    """Number, folder name or path of the dataset, as in 04, Task04_Hippocampus."""
    dim: Literal[2, 3] = 3
    """2: the slice-wise plan; 3: the volumetric one."""
    fold: int | None = None
    """Read the training cases of this fold; unset: all cases of the folder."""
    shape: tuple[int, int, int, int] | None = None
    """Synthetic input without a folder: channels, depth, height, width of a patch that a plan is made for."""
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
    batch_size: int | None = None
    """Patches per batch; unset: from the plan."""
    oversampling: float = 0.33
    """Share of each batch whose window is centred on a foreground voxel."""
    aug: tuple[str, ...] = ("nnunet",)
    """Presets (nnunet, nvidia, none), parts (noise:probability=0.2), or parts to leave out (no_blur). Not for
    predict, which never augments."""
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
    gpus: int = 1
    """Number of GPUs; only one is measured yet."""
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
    """Predict, real: how many cases of the folder are predicted whole."""
    val_batch_size: int = 4
    """Predict: windows of a volume that pass through the network at once."""
    n_jobs: int = -1
    """Preprocess: processes that work on cases at the same time; -1: one per core."""
    operators: bool = False
    """Loader: also measure what every augmentation costs on one core."""
    seed: int = 1
    """Decides the windows, the augmentations, the weights and synthetic voxels."""
    results: Path | None = None
    """Folder for benchmark_<mode>.json and the DLLogger lines in perf.json; unset: no file is written."""
    json: bool = False
    """Print one line of JSON on standard output, and the tables on standard error."""
    network: NetworkOptions = NetworkOptions()
    optimiser: OptimiserOptions = OptimiserOptions()


def refuse_impossible(options: BenchmarkOptions) -> None:
    """UserError if the options ask for nothing that can be measured; says what would work."""
    for name in COUNTS:
        if getattr(options, name) < 1:
            raise UserError(f"--{name} should be at least 1, got {getattr(options, name)}.")
    if options.n_jobs == 0:
        raise UserError("n_jobs is 0; give the number of processes, or -1 for one per core.")
    if options.gpus != 1:
        raise UserError(
            f"--gpus {options.gpus}: a benchmark measures one process on one device. Leave --gpus away; for "
            f"several, `main.py --exec_mode train --gpus {options.gpus}` logs speed/patches_per_s per epoch."
        )
    if options.mode not in NETWORK_MODES:
        _refuse_network_options(options)
    if options.operators and options.mode != "loader":
        raise UserError("--operators measures the loader's parts. Use --mode loader, or leave it away.")
    _refuse_shapes(options)


def _refuse_network_options(options: BenchmarkOptions) -> None:
    asked = {
        "--input synthetic": options.input == "synthetic",
        "--shape": options.shape is not None,
        "--amp": options.amp,
        "--compile": options.compile,
        "--layout NDHWC": options.network.layout != "NCDHW",
    }
    if wrong := [name for name, is_set in asked.items() if is_set]:
        raise UserError(
            f"--mode {options.mode} runs no network, so {', '.join(wrong)} cannot be measured with it. "
            "Use --mode train or predict."
        )


def _refuse_shapes(options: BenchmarkOptions) -> None:
    if options.volume is not None and (options.mode != "predict" or options.input != "synthetic"):
        raise UserError("--volume is the synthetic volume of --mode predict --input synthetic.")
    if options.volume is not None and min(options.volume) < 1:
        raise UserError(f"--volume is {options.volume}; every edge must be at least 1 voxel.")
    if options.shape is None:
        return
    if options.input != "synthetic":
        raise UserError(
            "--shape makes a plan for synthetic input: real patches have the shape of their plan."
        )
    if options.patch is not None:
        raise UserError("--shape already holds the patch. Give --shape or --patch, not both.")
    if min(options.shape) < 1:
        raise UserError(f"--shape is {options.shape}; channels and edges must be at least 1.")
    if (options.shape[1] == 1) != (options.dim == 2):
        raise UserError(
            f"--shape {options.shape} does not fit --dim {options.dim}: a 2-D patch is one slice deep, a 3-D "
            "patch has more than one."
        )
    if options.labels < 2 or options.classes < 0 or options.classes == 1 or min(options.spacing) <= 0:
        raise UserError(
            "--shape needs at least 2 --labels, either 0 or at least 2 --classes, and --spacing above 0; got "
            f"{options.labels}, {options.classes} and {options.spacing}."
        )
