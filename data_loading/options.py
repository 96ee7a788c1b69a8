"""What a user may choose about loading; plain values, free of DALI so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How patches are drawn, augmented and handed to the device."""

    batch_size: int | None = None
    """Patches per device and step; unset: from the plan."""
    oversampling: float = 0.4
    """Share of each batch whose window is centred on a foreground voxel."""
    lesion_centred: float = 0.0
    """Share of those windows that is centred on the lesion (the highest label) where the case has one."""
    balance_classes: bool = False
    """Draw cases so that each class is shown equally often; needs --steps_per_epoch. Replaces the weights of
    --class_balance."""
    augment: tuple[str, ...] = field(default=("nnunet",), metadata={"aliases": ("--aug",)})
    """Presets (nnunet, nvidia, none), parts (noise:probability=0.2), or parts to leave out (no_blur)."""
    augment_in: Literal["auto", "host", "graph"] = "auto"
    """host: compiled loops on the reading threads; graph: DALI operators; auto: graph on a GPU, else host."""
    residency: Literal["auto", "device", "memory", "disk"] = "auto"
    """Where volumes are kept; device: on each GPU; auto: on the GPU if all need at most half of what is free
    there beside 8 GB for training, else in memory if they need at most half of what is free."""
    steps_per_epoch: int = 0
    """Training steps per epoch, cases drawn with replacement; 0: one pass over the cases."""
    nvol: int | None = None
    """Volumes per batch of slices, each giving a run of neighbours; unset: each slice has its own draw."""
    data2d_dim: Literal[2, 3] = 3
    """3: slices are cut from volumes; 2: every case is a plain 2-D image (with --dim 2)."""
    num_workers: int = 8
    """Threads that read and augment samples, and as many for DALI's CPU operators; at most one per core."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
