"""What a user may choose about loading; plain values, free of DALI so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How patches are drawn, augmented and handed to the device."""

    batch_size: int | None = None
    """Patches per device and step; unset: from the plan."""
    oversampling: float = 0.33
    """Share of each batch whose window is centred on a foreground voxel."""
    augment: tuple[str, ...] = ("noise", "brightness", "mirror")
    """Augmentations in order: noise, brightness, mirror; options as in noise:probability=0.2; or none."""
    steps_per_epoch: int = 0
    """Training steps per epoch, cases drawn with replacement; 0: one pass over the cases."""
    num_workers: int = 4
    """DALI threads per pipeline on the CPU; never more than the machine has."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
