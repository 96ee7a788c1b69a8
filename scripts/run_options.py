"""The options of main.py: the rooms' own, and what only a whole run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_loading.options import LoaderOptions
from nnunet.options import InferenceOptions, LossOptions, NetworkOptions, OptimiserOptions, TrainingOptions
from scripts.configurations import Configuration
from utils.errors import UserError
from utils.ranges import check_number

Recipe = Literal[
    "nvidia",
    "nnunet",
    "nnUNetTrainerWithClassification",
    "ClsFeatureScaling",
    "AgClassEnc",
    "CLSHeadSimple",
    "CLSHeadSum",
    "CLSHeadSumFT",
    "CLSHeadSepOpt",
    "CLSHeadMA",
    "multi_scale_focal",
]
ALL_CASES = "all"  # of --fold
AUTO, NO_POSTPROCESSING = "auto", "none"  # of --postprocessing
SEGMENTATION, CLASSIFICATION = "segmentation", "classification"  # of --predictor


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to run, on which data, where to write."""

    exec_mode: Literal["train", "evaluate", "predict"] = "train"
    """train: fit a model; evaluate: score a checkpoint on the held-out cases; predict: masks and classes."""
    recipe: Recipe = "nvidia"
    """What an option is where nothing else is said: as NVIDIA has it, as nnU-Net has it, or as nnU-Net with
    the class head of another system's trainer of that name (docs/classification.md)."""
    benchmark: bool = False
    """Measure instead: --exec_mode train or predict for --warmup and --train_batches or --test_batches
    batches, as scripts/benchmark.py does."""
    data: Path = Path("/data")
    """Folder that holds the preprocessed folders (01_3d, ...), or one such folder itself; unset: that of the
    environment variable nnUNet_preprocessed, where it is set."""
    results: Path = Path("/results")
    """Folder for checkpoints, logs and predictions; unset: below that of the environment variable
    nnUNet_results, where it is set, in <dataset>/<plan>__<configuration>/fold_N."""
    overwrite: bool = False
    """Train even if --results holds another fold, plan or dataset: checkpoints and scores are replaced."""
    task: str = "01"
    """Number, folder name or path of the dataset, as in 04, Task04_Hippocampus."""
    brats: bool = False
    """Train on BraTS's three overlapping regions (whole tumour, core, enhancing) of labels 1, 2, 3, with
    sigmoids."""
    dim: Literal[2, 3] = 3
    """2: the slice-wise plan; 3: the volumetric one."""
    configuration: Configuration | None = None
    """Another way to say --dim and --plan, by nnU-Net's names: 2d and 3d_fullres are --dim 2 and 3; 3d_lowres
    is --dim 3 --plan lowres, 3d_cascade_fullres --dim 3 --plan cascade. With --plan, one of that
    configuration."""
    plan: str = "default"
    """Which plan of the preprocessed folder, by the name that preprocess.py --plan_name gave it; default:
    plan.json."""
    fold: int | Literal["all"] = 0
    """Which fold is held out for validation; all: train on every case, with no validation and no score."""
    nfolds: int = 5
    """Number of folds, where the dataset brings no splits_final.json."""
    seed: int = 1
    """Decides every random number of the run."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU where there is one."""
    gpus: int = 1
    """GPUs per node; with --device cpu, processes per node."""
    nodes: int = 1
    """Number of nodes."""
    affinity: str = "auto"
    """Processors of each GPU's process: socket, socket_single, socket_single_unique,
    socket_unique_interleaved, socket_unique_contiguous or disabled; auto: the last but one, where it is known
    what lies near a GPU."""
    logname: str = "logs.json"
    """Name of the DLLogger file in the results folder."""
    ckpt_store_dir: Path | None = None
    """Checkpoints go to the folder checkpoints in here; unset: in --results."""
    warmup: int = 5
    """With --benchmark: batches before the clock starts."""
    ckpt_path: Path | None = None
    """Checkpoint to predict with or to evaluate, unset: the best one in the results folder; with --exec_mode
    train its weights, as far as they fit, are those to start from."""
    members: tuple[Path, ...] = ()
    """Models that predict together by the mean of their probabilities: checkpoints, results of trainings or
    of cross-validations; each path counts alike. Unset: the model of --results, or all folds of a
    cross-validation there."""
    folds: tuple[int, ...] = ()
    """Folds of a cross-validation: those to train (scripts/crossval.py), or those that predict together;
    unset: all."""
    folds_at_once: int | None = None
    """How many folds scripts/crossval.py trains at the same time; unset: one for every --gpus GPUs that are
    there."""
    previous_stage: Path | None = None
    """Results of the first stage of a cascade, for predictions of raw scans; unset: those that
    previous_stage.json beside the second stage names."""
    predictor: Literal["segmentation", "classification"] | None = None
    """What a prediction writes: masks and volumes, or classes; unset: all that the checkpoint predicts."""
    postprocessing: str = AUTO
    """Which components of a predicted mask are removed: a postprocessing.json; auto: that of the models'
    results, where there is one; none: no component."""
    input: Path | None = field(default=None, metadata={"aliases": ("-i",)})
    """Scan, folder of scans or of DICOM series, or raw dataset (its held-out cases); unset: preprocessed
    cases are predicted."""
    output: Path | None = field(default=None, metadata={"aliases": ("-o",)})
    """Folder for predictions; unset: predictions in the results folder."""
    class_output: Path | None = None
    """Folder for subtype_results.csv and <case>_classification.json, the predicted classes; unset: beside the
    masks."""
    shard: str | None = None
    """Predict part i of n of the sorted cases, as 1/4 to 4/4: one job each, in any order, on any machines."""
    continue_prediction: bool = False
    """Go on with an interrupted prediction of scans: those whose mask and other files are all in the folder
    of the predictions, by the same models and options, are not predicted again."""
    save_preds: bool = False
    """Write the predicted masks as NumPy arrays (z, y, x) too, in the folder npy of the predictions. --npz
    writes probabilities."""
    mirror_left_right: Literal["auto", "swap", "off", "plain"] = "auto"
    """Mirroring along the axis from left to right, in training and with --tta; swap: labels of a pair (left
    and right kidney) change places; off: not mirrored; plain: like the other axes; auto: in training swap
    where there are such pairs, else plain; in prediction as in training."""
    left_right_pairs: tuple[str, ...] = ()
    """Pairs of labels, or of regions, that change places in training, as kidney_left:kidney_right; none: no
    pair; unset: those of dataset.json, else found by their names."""
    loader: LoaderOptions = LoaderOptions()
    network: NetworkOptions = NetworkOptions()
    loss: LossOptions = LossOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    training: TrainingOptions = TrainingOptions()
    inference: InferenceOptions = InferenceOptions()

    def __post_init__(self) -> None:
        """UserError for numbers and names that no run can have."""
        if self.fold != ALL_CASES:
            check_number("fold", self.fold, least=0)
        check_number("nfolds", self.nfolds, least=2)
        check_number("folds_at_once", self.folds_at_once, least=1)
        check_number("warmup", self.warmup, least=1)
        check_number("seed", self.seed, least=0, below=2**63)
        if Path(self.logname).name != self.logname or not self.logname:
            raise UserError(f"--logname is the name of a file in --results, not {self.logname!r}.")

    @property
    def test_limit(self) -> int | None:
        """Validation volumes per process, or predicted cases, at most; None: all."""
        return self.training.test_batches or None

    @property
    def store(self) -> Path:
        """The folder whose folder checkpoints holds this run's."""
        return self.ckpt_store_dir or self.results
