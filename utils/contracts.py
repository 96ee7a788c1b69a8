"""The records that flow between rooms; every arrow on the map carries one of these.

Arrays are (channel, depth, height, width). Shapes and spacings are (depth, height, width).
Lengths are millimetres, volumes millilitres. Records are moved and read here, never computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

OUTSIDE_LABEL = -1  # stored label of a voxel outside the non-zero mask of its case; trained as background
HIGHEST_LABEL = 255  # label value; predicted masks are stored as uint8
NO_CLASS = -1  # class target of a case whose class is unknown; masked in losses and metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCase:
    """One study on disk, as the hospital or the challenge delivered it.

    `images` has one path per channel, or a single 4-D file that holds all of them.
    """

    case_id: str
    patient_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    class_target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A raw dataset folder, read and understood; `label_names[i]` is the name of label value i."""

    name: str
    root: Path
    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]
    class_title: str
    training: tuple[RawCase, ...]
    test: tuple[RawCase, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    region_names: tuple[str, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None
    left_right_pairs: tuple[tuple[int, int], ...] | None = None  # label values; None: not declared


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityStats:
    """Foreground intensities of one channel over the whole training set."""

    mean: float
    std: float
    median: float
    min: float
    max: float
    low: float  # 0.5 percentile
    high: float  # 99.5 percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the training set looks like; measured once, never edited.

    Shapes (after the crop to non-zero) and spacings are (z, y, x) of the RAS-oriented volumes,
    one entry per training case, in the order of `case_ids`.
    """

    dataset: str
    case_ids: tuple[str, ...]
    shapes: tuple[Shape, ...]
    spacings_mm: tuple[Spacing, ...]
    intensity: tuple[IntensityStats, ...]
    relative_sizes: tuple[float, ...]  # voxels after / before the crop to non-zero
    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One resolution level of the U-Net; a flat kernel or stride has a 1 on the first axis.

    `num_blocks` counts the encoder's convolutions, in a residual encoder its blocks of two.
    """

    channels: int
    kernel: Shape
    stride: Shape
    num_blocks: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every decision derived from the fingerprint; the only file training needs to read.

    Region i is the union of the labels `regions[i]`, is called `region_names[i]` and is written into a mask
    as the label `regions_class_order[i]`, later regions over earlier ones. `num_labels` counts the
    background, but not the ignore label.
    """

    dataset: str
    configuration: str  # 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres
    axis_order: Shape  # permutation of (z, y, x) that puts the coarsest axis first
    median_shape: Shape
    spacing_mm: Spacing
    patch: Shape
    batch_size: int
    stages: tuple[Stage, ...]
    normalisers: tuple[str, ...]
    uses_mask: tuple[bool, ...]
    intensity: tuple[IntensityStats, ...]
    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    class_names: tuple[str, ...]
    num_channels: int
    num_labels: int
    num_classes: int
    preset: str = "nnunet"  # order of the preprocessing steps: nnunet or nvidia
    foreground_channel: bool = False  # one more input channel that marks the non-zero mask (--ohe)
    prior_labels: int = 0
    regions: tuple[tuple[int, ...], ...] = ()
    region_names: tuple[str, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None
    batch_dice: bool = False
    planner: str = "default"  # who made it: default, resenc_m, resenc_l or resenc_xl
    encoder: str = "plain"  # the network that stages, patch and batch were planned for
    decoder_blocks: int = 2  # convolutions per stage of the decoder
    resampling: str = "scipy"  # of images: scipy, torch, torch_sepz or none
    left_right_pairs: tuple[tuple[int, int], ...] | None = None  # label values; None: not declared
    left_right: str = "plain"  # what mirroring along x does to these labels: swap, off (none) or plain

    @property
    def num_logits(self) -> int:
        """Channels of the network's label logits: one per region, else one per label."""
        return len(self.regions) or self.num_labels

    @property
    def target_names(self) -> tuple[str, ...]:
        """What is segmented and scored, in order: the regions, else the labels above 0."""
        return self.region_names or self.label_names[1 : self.num_labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """How one case was oriented, cropped and resampled; enough to walk back to the scanner's grid.

    `native_shape` is the (x, y, z) shape of the file; `orientation` its axis codes (for example "LPS").
    `oriented_shape` and the crop are in planned axes: RAS, then (z, y, x), then `axis_order`.
    """

    native_shape: Shape
    native_spacing_mm: Spacing
    orientation: str
    axis_order: Shape
    oriented_shape: Shape
    oriented_spacing_mm: Spacing
    crop_start: Shape
    crop_stop: Shape
    cropped_shape: Shape
    planned_shape: Shape
    padding_before: Shape
    padding_after: Shape
    qform_code: int
    sform_code: int
    affine: tuple[tuple[float, ...], ...]
    mask_ending: str = ".nii.gz"  # of a mask in the format of the image
    resampling: str = "scipy"  # as in the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessedCase:
    """One study as .npy files on the planned grid, in `folder`: <case>_x.npy, _y.npy, _fg.npy."""

    case_id: str
    patient_id: str
    image: Path
    label: Path | None
    foreground: Path | None
    class_target: int
    shape: Shape
    footprint: Footprint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What the loader hands to the model; already on the model's device.

    image (B, C, D, H, W) float32: the plan's channels, then one per label of the previous stage. Each label
    (B, 1, D_i, H_i, W_i) int16; with R regions (B, R, D_i, H_i, W_i) uint8, one binary channel each, and with
    an ignore label one more, the last, that marks it. class_target (B,) int64 with NO_CLASS where it is
    unknown; case_weights (B,) float32, 0 for a padded copy; mask_weights (B,) float32, the same but 0 for a
    case without a mask too: what a label map counts in a loss. num_counted is the number of case weights
    above 0, known without asking the device.
    """

    image: Tensor
    label: tuple[Tensor, ...]  # finest first, as label_logits; empty where no label exists
    class_target: Tensor | None
    case_weights: Tensor | None
    case_ids: tuple[str, ...]
    num_counted: int
    mask_weights: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Lightning moves anything that has `to`; without it a frozen record is refused."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("image", "class_target", "case_weights", "mask_weights")
            if (value := getattr(self, name)) is not None
        }
        label = tuple(level.to(device, non_blocking=True) for level in self.label)
        return replace(self, label=label, **moved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelOutput:
    """Same fields in training and in evaluation: only the tuple's length differs."""

    label_logits: tuple[Tensor, ...]  # finest first, (B, L, D_i, H_i, W_i); with R regions (B, R, ...)
    class_logits: Tensor | None = None  # (B, K) float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Probabilities for one case on the planned grid, from one model or from many."""

    case_id: str
    label_probs: np.ndarray  # (L, D, H, W), summing to 1; with regions (R, D, H, W), each by itself
    class_probs: np.ndarray | None = None  # (K,)
    voxel_entropy: np.ndarray | None = None
    voxel_disagreement: np.ndarray | None = None
    num_members: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number of one metric; `case_id` is None for a number over the whole set."""

    case_id: str | None
    target: str
    metric: str
    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The end of the road: tidy rows, nothing nested."""

    scores: tuple[Score, ...]
