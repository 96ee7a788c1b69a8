"""Made-up BraTS patients: a brain with one nested tumour in four MR contrasts, in BraTS's folders and values.

Oedema lies around the core, the core is a ring of enhancing tumour around necrosis. Each part looks different
in at least one contrast, as in patients, so that a small network learns it in a minute. No measured image
went into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from data_preprocessing.brats import MODALITIES
from data_preprocessing.phantom_anatomy import Space
from data_preprocessing.volume_io import write_volume
from utils.ranges import check_number

SHAPE = (36, 44, 44)  # (z, y, x)
SPACING_MM = (1.0, 1.0, 1.0)
OEDEMA_RADIUS_MM = (8.0, 11.0)
CORE_SHARE, NECROSIS_SHARE = 0.66, 0.38  # of the radius of the oedema
BRAIN_SHARE = 0.46  # half axes of the brain, as a share of the crop
VENTRICLE_SHARE = (0.08, 0.16, 0.05)  # half axes of the ventricles, likewise
NOISE = 30.0
GAIN_SPREAD = 0.1  # of the logarithm of a contrast's scale from patient to patient
BLUR_VOXELS = 0.5  # partial volume at every border
FIRST_TEST_NUMBER = 1700  # training patients count from 0
SCANNER_CODE = 1  # NIfTI: scanner-based coordinates
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # BraTS's values
# Brightness in arbitrary units in flair, t1, t1ce, t2.
GREY_MATTER = (400, 400, 410, 480)
WHITE_MATTER = (330, 520, 530, 380)
FLUID = (120, 180, 190, 850)
TUMOUR = {OEDEMA: (720, 330, 340, 760), ENHANCING: (610, 370, 880, 640), NECROSIS: (350, 220, 240, 820)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BratsPhantomOptions:
    """How many made-up patients, and which."""

    num_train: int = 10
    """Made-up patients with a mask."""
    num_test: int = 2
    """Made-up patients without."""
    seed: int = 0
    """The same seed gives the same files, byte by byte."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BratsPatient:
    """`images`: contrast -> (D, H, W) int16, 0 outside the brain; `mask` (D, H, W) uint8, BraTS's values."""

    images: Mapping[str, np.ndarray]
    mask: np.ndarray


def write_brats_phantom(train: Path, test: Path | None, options: BratsPhantomOptions) -> None:
    """Write the patients with masks into `train`, those without into `test`, if one is given.

    Raises UserError for no patient with a mask, as no dataset can be made of none, and for negative numbers.
    """
    check_number("num_train", options.num_train, least=1)
    check_number("num_test", options.num_test, least=0)
    check_number("seed", options.seed, least=0)
    seeds = np.random.SeedSequence(options.seed).spawn(options.num_train + options.num_test)
    for index, seed in enumerate(seeds):
        is_test = index >= options.num_train
        folder, number = train, index
        if is_test:
            if test is None:
                break
            folder, number = test, FIRST_TEST_NUMBER + index
        _write_patient(folder, f"BraTS2021_{number:05d}", draw_patient(seed), has_mask=not is_test)


def draw_patient(seed: np.random.SeedSequence) -> BratsPatient:
    """One patient, decided by `seed` alone."""
    random = np.random.default_rng(seed)
    space = Space(shape=SHAPE, spacing_mm=SPACING_MM)
    middle = space.extent_mm / 2
    brain = space.radius_from(middle, BRAIN_SHARE * space.extent_mm * random.uniform(0.95, 1.05, 3)) < 1
    mask = _draw_tumour(random, space, brain)
    # White matter in smooth clumps stands for its folds.
    is_white = _smooth_noise(random, 2.0) > 0
    is_fluid = space.radius_from(middle, np.asarray(VENTRICLE_SHARE) * space.extent_mm) < 1
    images = {}
    for channel, name in enumerate(MODALITIES):
        image = np.where(is_white, float(WHITE_MATTER[channel]), float(GREY_MATTER[channel]))
        image[is_fluid] = FLUID[channel]
        for value, brightness in TUMOUR.items():
            image[mask == value] = brightness[channel]
        image = ndimage.gaussian_filter(image, BLUR_VOXELS) + random.normal(0, NOISE, SHAPE)
        image *= np.exp(random.normal(0, GAIN_SPREAD))
        images[name] = np.where(brain, np.rint(image).clip(1, None), 0).astype(np.int16)
    return BratsPatient(images=images, mask=mask)


def _draw_tumour(random: np.random.Generator, space: Space, brain: np.ndarray) -> np.ndarray:
    """(D, H, W) uint8: three dented ellipsoids, one within the other, cut off at the brain's surface."""
    radius = random.uniform(*OEDEMA_RADIUS_MM)
    centre = space.extent_mm * random.uniform(0.38, 0.62, 3)
    level = space.radius_from(centre, radius * random.uniform(0.9, 1.1, 3))
    level *= 1 + 0.05 * _smooth_noise(random, 2.5)
    mask = np.zeros(space.shape, dtype=np.uint8)
    for value, share in ((OEDEMA, 1.0), (ENHANCING, CORE_SHARE), (NECROSIS, NECROSIS_SHARE)):
        mask[(level < share) & brain] = value
    return mask


def _smooth_noise(random: np.random.Generator, grain_voxels: float) -> np.ndarray:
    """(D, H, W) Gaussian noise of unit variance with that correlation length."""
    field = ndimage.gaussian_filter(random.standard_normal(SHAPE), grain_voxels)
    return field / field.std()


def _write_patient(folder: Path, name: str, patient: BratsPatient, *, has_mask: bool) -> None:
    volumes = {**patient.images, **({"seg": patient.mask} if has_mask else {})}
    # BraTS's files run to left, posterior and superior; the origin lies at the last row.
    z_mm, y_mm, x_mm = SPACING_MM
    affine = np.diag([-x_mm, -y_mm, z_mm, 1.0])
    affine[1, 3] = (SHAPE[1] - 1) * y_mm
    for key, voxels in volumes.items():
        write_volume(
            folder / name / f"{name}_{key}.nii.gz",
            voxels.transpose(2, 1, 0),
            affine=affine,
            qform_code=SCANNER_CODE,
            sform_code=SCANNER_CODE,
            spacing_mm=(x_mm, y_mm, z_mm),
        )
