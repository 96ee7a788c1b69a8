"""What a user may choose about network, loss, optimisation and inference; plain values, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from utils.errors import UserError
from utils.ranges import check_number


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network around the planned stages."""

    encoder: str | None = None
    """What changes features: plain (the plan's number of convolutions per stage) or residual (as many blocks,
    of two convolutions beside a skip), or attention_gated, whose branch has a stream of its own; unset: as
    planned, residual for a plan of a ResEnc planner, else plain."""
    branch: str = "roi_pooled"
    """What turns features into class logits: bottleneck, memory_query, multi_scale, roi_pooled, roi_scaled or
    simple, options behind a colon; none: no class."""
    res_block: bool = False
    """Residual blocks in the encoder; short for --encoder residual."""
    depth: int | None = None
    """Poolings at most, by NVIDIA's rule instead of the planned stages; unset: as planned, or 5 with
    --min_fmap."""
    min_fmap: int | None = None
    """Shortest edge [voxels] that a pooling may leave, by NVIDIA's rule; unset: as planned, or 4 with
    --depth."""
    filters: tuple[int, ...] = ()
    """Channels per stage, finest first, instead of the planned ones; the last holds for all stages behind."""
    more_chn: bool = False
    """Short for --filters 64 96 128 192 256 384 512 768 1024."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation after each convolution."""
    negative_slope: float = 0.01
    """Slope of the leaky ReLU below zero."""
    deep_supervision: bool = False
    """Train the outputs of the lower resolutions as well."""
    deep_supr_num: int | None = None
    """How many lower resolutions are supervised; unset: all but the two lowest, as nnU-Net."""
    layout: Literal["NCDHW", "NDHWC"] = "NCDHW"
    """Order of a tensor's axes in memory: NDHWC has the channels last, in loader and network."""

    def __post_init__(self) -> None:
        """UserError for a number that no network can have."""
        check_number("negative_slope", self.negative_slope, least=0)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The weights of the multi-task loss."""

    class_loss_weight: float = 0.3
    """Weight of the class loss beside the segmentation loss."""
    class_loss: str = "cross_entropy"
    """Loss of the class: cross_entropy, focal, ldam or logit_adjusted, options behind a colon."""
    class_balance: bool = True
    """Weigh each class as the class loss says: cross_entropy and focal by the inverse of its training cases,
    ldam, late in training, by the inverse of their effective number, logit_adjusted not at all."""
    lesion_free_weight: float = 0.25
    """Weight of the class loss of a patch without any lesion voxel."""
    batch_dice: bool | None = None
    """Pool the Dice statistics over the batch; unset: from the plan."""
    focal: bool = False
    """Focal loss (gamma 2) instead of the cross-entropy of voxels."""
    task_balance: bool = False
    """Learn the weights of both losses with the network, from 1 and --class_loss_weight on."""

    def __post_init__(self) -> None:
        """UserError for a weight that would turn a loss round."""
        check_number("class_loss_weight", self.class_loss_weight, least=0)
        check_number("lesion_free_weight", self.lesion_free_weight, least=0)


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """How weights move."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """adam: AdamW; sgd: with Nesterov momentum."""
    learning_rate: float | None = None
    """Peak learning rate; unset: 8e-4 for adam, 1e-2 for sgd."""
    head_learning_rate: float | None = None
    """Peak learning rate of the branch; unset: that of the network. The schedule scales both."""
    momentum: float = 0.99
    """Momentum of sgd."""
    weight_decay: float | None = None
    """Weight decay; unset: 1e-4 for adam (decoupled), 3e-5 for sgd."""
    scheduler: bool = False
    """Linear warm-up over 250 steps, then cosine decay to zero at the end of the run."""
    schedule: Literal["auto", "constant", "cosine", "poly"] = "auto"
    """Decay over the whole run (poly: exponent 0.9); auto: cosine with --scheduler, else constant."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly to its peak; unset: 250 with --scheduler, else 0."""
    gradient_clip_val: float = 0.0
    """Largest gradient norm; 0: no clipping."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, validated and saved in their place; 0: off."""

    def __post_init__(self) -> None:
        """UserError for a number that would not train."""
        for name in (
            "learning_rate",
            "head_learning_rate",
            "weight_decay",
            "warmup_steps",
            "gradient_clip_val",
        ):
            check_number(name, getattr(self, name), least=0)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("ema", self.ema, least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What learns, how long training runs and what it keeps."""

    learn: Literal["joint", "segmentation", "classification"] = "joint"
    """joint: both tasks; segmentation: without a branch; classification: without the segmentation's loss."""
    freeze: Literal["none", "encoder", "backbone"] = "none"
    """What keeps its weights: the encoder, or the backbone (encoder and decoder), so that the branch alone
    learns."""
    epochs: int = 1000
    """Number of epochs."""
    min_epochs: int = 0
    """Epochs before early stopping may end the run."""
    max_epochs: int | None = None
    """Same as --epochs, under Lightning's name; wins where both are given."""
    time_budget: float | None = None
    """Minutes of training after which the run ends; the schedule is fitted to it."""
    patience: int = 100
    """Epochs without a lower validation loss after which training stops; 0: never."""
    val_every: int = 1
    """Validate every so many epochs."""
    skip_first_n_eval: int = 0
    """Do not validate in the first so many epochs."""
    amp: bool = False
    """Mixed precision: bfloat16 where the device has it, else float16 with loss scaling on CUDA."""
    compile: bool = False
    """Compile the network with torch.compile; falls back to plain execution where that fails."""
    dry_step: Literal["auto", "on", "off"] = "auto"
    """Before training, measure the memory of a step on random voxels; where it does not fit, batch, then
    patch are lowered until it does. auto: on a GPU."""
    save_ckpt: bool = True
    """Write <results>/checkpoints/last.ckpt and the best epoch=N.ckpt; a fresh start replaces those there."""
    resume_training: bool = False
    """Go on from <results>/checkpoints/last.ckpt: weights, optimiser, schedule, scaler, epoch, loader."""
    sync_batchnorm: bool = False
    """With --norm batch and several GPUs: statistics over the batches of all of them."""
    train_batches: int = 0
    """Training steps per epoch at most; 0: all."""
    test_batches: int = 0
    """Validation volumes per process and epoch, and predicted cases, at most; 0: all. The final validation
    covers all."""
    profile: bool = False
    """Record up to 20 steps of the first epoch: <results>/profile/trace.json and summary.txt."""
    fit_classifier: str = "lda"
    """Where cases have classes, fit lda or logistic to pooled features of the trained network at the end,
    options behind a colon, into <results>/classifier; none: neither."""
    npz: bool = False
    """Keep label probabilities, float16: those of the final validation in validation/probabilities (.npy, on
    the planned grid); with --exec_mode predict beside every mask, on its grid, as nnU-Net's <case>.npz: the
    array probabilities (label or region, z, y, x)."""

    def __post_init__(self) -> None:
        """UserError for numbers that no run can have."""
        for name in ("epochs", "max_epochs", "val_every"):
            check_number(name, getattr(self, name), least=1)
        for name in ("min_epochs", "patience", "skip_first_n_eval", "train_batches", "test_batches"):
            check_number(name, getattr(self, name), least=0)
        check_number("time_budget", self.time_budget, above=0)
        longest = self.epochs if self.max_epochs is None else self.max_epochs
        if self.min_epochs > longest:
            raise UserError(f"--min_epochs {self.min_epochs} is more than the {longest} epochs of the run.")

    @property
    def segmentation_learns(self) -> bool:
        """Whether anything that makes masks is trained by the segmentation's loss."""
        return self.learn != "classification" and self.freeze != "backbone"


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a volume is predicted from windows."""

    overlap: float = 0.5
    """Overlap of neighbouring windows, 0 to below 1."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weight of a window's voxels in the average."""
    tta: bool = field(default=False, metadata={"off_aliases": ("--disable_tta",)})
    """Average over mirrored views as well (8 in 3-D, 4 in 2-D)."""
    val_batch_size: int = 4
    """Windows that pass through the network at once."""
    classifier: Literal["branch", "lda", "logistic"] = "branch"
    """Whose class probabilities are predicted and scored: those of the network's branch, or of the classifier
    that --fit_classifier or scripts/fit_classifier.py left in the results folder."""
    class_vote: Literal["lesion_mass", "mean", "max_mass"] = "lesion_mass"
    """What the class answer of a window counts in that of its case: its predicted lesion voxels, the same for
    all windows, or everything for the window with the most lesion. Without any lesion all count alike."""
    invert_resampled_y: bool = False
    """Score the validation of each epoch on the grid before resampling too; that Dice then chooses the best
    epoch. The final validation always scores on the scanner's grid."""
