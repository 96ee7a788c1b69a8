"""NVIDIA's published patch, spacing and CT window of twelve datasets, for those datasets and no others.

The figures are those of `configs.py` in nnU-Net for PyTorch (NVIDIA/DeepLearningExamples, state of February
2023), as D H W of arrays that were transposed to (z, y, x). The Decathlon's files run along the axes of the
body, so this is also the order of planned axes: the slices come first, and no axis is coarser than they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.contracts import Fingerprint, IntensityStats, Shape, Spacing

NUMBERED_FOLDER = re.compile(r"(?:Task|Dataset)(\d+)_(.+)")
UNNUMBERED = "BraTS2021_"  # NVIDIA's folders of the tasks 11 and 12 are called without a number
BATCH_SIZE_3D, BATCH_SIZE_2D = 2, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CtWindow:
    """Clip [HU], then mean and standard deviation [HU] of the standardisation."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The published settings of one configuration; a 2-D patch has one slice."""

    patch: Shape
    spacing_mm: Spacing
    batch_size: int
    window: CtWindow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTask:
    """One row of the table; the planes have the same spacing in 2-D as in 3-D."""

    number: int
    name: str
    patch_3d: Shape
    spacing_mm: Spacing
    patch_2d: tuple[int, int] | None
    num_channels: int = 1
    window: CtWindow | None = None

    def preset(self, configuration: str) -> Preset | None:
        """The settings of `configuration`; None where none were published."""
        if configuration == "3d_fullres":
            return self._preset(self.patch_3d, BATCH_SIZE_3D)
        if configuration == "2d" and self.patch_2d is not None:
            return self._preset((1, *self.patch_2d), BATCH_SIZE_2D)
        return None

    def _preset(self, patch: Shape, batch_size: int) -> Preset:
        return Preset(patch=patch, spacing_mm=self.spacing_mm, batch_size=batch_size, window=self.window)


TASKS = (
    PublishedTask(
        number=1,
        name="BrainTumour",
        num_channels=4,
        patch_3d=(128, 128, 128),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_2d=(192, 160),
    ),
    PublishedTask(
        number=2, name="Heart", patch_3d=(80, 192, 160), spacing_mm=(1.37, 1.25, 1.25), patch_2d=(320, 256)
    ),
    PublishedTask(
        number=3,
        name="Liver",
        patch_3d=(128, 128, 128),
        spacing_mm=(1.0, 0.7676, 0.7676),
        patch_2d=(512, 512),
        window=CtWindow(low=-17, high=201, mean=99.4, std=39.36),
    ),
    PublishedTask(
        number=4, name="Hippocampus", patch_3d=(40, 56, 40), spacing_mm=(1.0, 1.0, 1.0), patch_2d=(56, 40)
    ),
    PublishedTask(
        number=5,
        name="Prostate",
        num_channels=2,
        patch_3d=(20, 320, 256),
        spacing_mm=(3.6, 0.62, 0.62),
        patch_2d=(320, 320),
    ),
    PublishedTask(
        number=6,
        name="Lung",
        patch_3d=(80, 192, 160),
        spacing_mm=(1.24, 0.79, 0.79),
        patch_2d=(512, 512),
        window=CtWindow(low=-1024, high=325, mean=-158.58, std=324.7),
    ),
    PublishedTask(
        number=7,
        name="Pancreas",
        patch_3d=(40, 224, 224),
        spacing_mm=(2.5, 0.8, 0.8),
        patch_2d=(512, 512),
        window=CtWindow(low=-96, high=215, mean=77.9, std=75.4),
    ),
    PublishedTask(
        number=8,
        name="HepaticVessel",
        patch_3d=(64, 192, 192),
        spacing_mm=(1.5, 0.8, 0.8),
        patch_2d=(512, 512),
        window=CtWindow(low=-3, high=243, mean=104.37, std=52.62),
    ),
    PublishedTask(
        number=9,
        name="Spleen",
        patch_3d=(64, 192, 160),
        spacing_mm=(1.6, 0.79, 0.79),
        patch_2d=(512, 512),
        window=CtWindow(low=-41, high=176, mean=99.29, std=39.47),
    ),
    PublishedTask(
        number=10,
        name="Colon",
        patch_3d=(56, 192, 160),
        spacing_mm=(3.0, 0.78, 0.78),
        patch_2d=(512, 512),
        window=CtWindow(low=-30, high=165.82, mean=62.18, std=32.65),
    ),
    PublishedTask(
        number=11,
        name="BraTS2021_train",
        num_channels=4,
        patch_3d=(128, 128, 128),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_2d=None,
    ),
    PublishedTask(
        number=12,
        name="BraTS2021_val",
        num_channels=4,
        patch_3d=(128, 128, 128),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_2d=None,
    ),
)


def published_task(fingerprint: Fingerprint) -> PublishedTask | None:
    """The row of the dataset that was measured; None for every dataset that only resembles one.

    Number and name of the folder must both agree (Task04_Hippocampus, Dataset004_Hippocampus), the number of
    channels, and the direction of the slices where the published spacing has a coarsest axis.
    """
    num_channels = len(fingerprint.channel_names)
    for task in TASKS:
        if _is_called(fingerprint.dataset, task) and num_channels == task.num_channels:
            return task if _has_slices(fingerprint, task) else None
    return None


def published_preset(fingerprint: Fingerprint, configuration: str) -> Preset | None:
    """The published settings of `configuration`, if the dataset is a published one and has them."""
    task = published_task(fingerprint)
    return None if task is None else task.preset(configuration)


def _is_called(folder: str, task: PublishedTask) -> bool:
    match = NUMBERED_FOLDER.fullmatch(folder)
    if match:
        return int(match[1]) == task.number and match[2].casefold() == task.name.casefold()
    return task.name.startswith(UNNUMBERED) and folder.casefold() == task.name.casefold()


def _has_slices(fingerprint: Fingerprint, task: PublishedTask) -> bool:
    if task.spacing_mm[0] == task.spacing_mm[1]:
        return True
    median_mm = np.median(np.asarray(fingerprint.spacings_mm), axis=0)
    return int(np.argmax(median_mm)) == 0


def with_window(intensity: Sequence[IntensityStats], window: CtWindow | None) -> tuple[IntensityStats, ...]:
    """The statistics of all channels, with the published clip, mean and deviation instead of the measured."""
    if window is None:
        return tuple(intensity)
    return tuple(
        replace(stats, low=window.low, high=window.high, mean=window.mean, std=window.std)
        for stats in intensity
    )
