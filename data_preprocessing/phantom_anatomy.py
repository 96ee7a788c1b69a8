"""One synthetic CT crop: a pancreas with one lesion whose subtype shows in texture, rim and offset only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.contracts import Shape, Spacing

NOISE_HU = 12.0
PANCREAS_HU, PANCREAS_SPREAD_HU = 78.0, 4.0  # mean over all cases, and its spread from case to case
PANCREAS_TEXTURE_HU = 12.0
FAT_HU = (-100.0, -60.0)
ORGAN_HU = (62.0, 105.0)  # bowel and vessels: like the pancreas, never like a lesion
LESION_HU, LESION_SPREAD_HU = 18.0, 4.0
CALCIFICATION_HU = (550.0, 1200.0)
CALCIFICATION_SHARE = 0.15  # of the cases
PANCREAS_RADIUS = 0.12  # share of the shortest extent
LESION_RADIUS = 1.15  # median, in pancreas radii
LESION_RADIUS_SPREAD = 0.3  # of its logarithm; a log-normal radius makes a log-normal volume
LESION_RADIUS_LIMITS = (0.75, 2.2)  # in pancreas radii
BLUR_VOXELS = 0.5  # partial volume at every border
INT16_HU = (-1024, 3071)  # range of a CT scanner


@dataclass(frozen=True, slots=True, kw_only=True)
class CropSize:
    """Smallest and largest crop in voxels (z, y, x), the range of the slice spacing, the in-plane spacing."""

    smallest: Shape
    largest: Shape
    slice_mm: tuple[float, float]
    plane_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtype:
    """How a lesion looks inside; `offset_hu` makes up for part of the rim: the mean tells little."""

    offset_hu: float
    rim_hu: float
    texture_hu: float
    grain_voxels: float  # correlation length of the speckle; 0 for stripes
    period_voxels: float = 0.0  # of the stripes


SUBTYPES = (
    Subtype(offset_hu=-6.0, rim_hu=40.0, texture_hu=4.0, grain_voxels=0.5),
    Subtype(offset_hu=0.0, rim_hu=0.0, texture_hu=23.0, grain_voxels=1.3),
    Subtype(offset_hu=6.0, rim_hu=-40.0, texture_hu=14.0, grain_voxels=0.0, period_voxels=3.5),
)
CROP_SIZES = {
    "tiny": CropSize(smallest=(14, 28, 30), largest=(18, 34, 36), slice_mm=(4.5, 5.5), plane_mm=3.0),
    "small": CropSize(smallest=(28, 58, 84), largest=(36, 70, 108), slice_mm=(2.5, 3.5), plane_mm=1.46),
    "full": CropSize(smallest=(40, 80, 120), largest=(90, 170, 260), slice_mm=(2.0, 3.0), plane_mm=0.73),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhantomCase:
    """`image` (D, H, W) int16 in HU; `label` (D, H, W) uint8: 0 background, 1 pancreas, 2 lesion."""

    image: np.ndarray
    label: np.ndarray
    spacing_mm: Spacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The voxel grid of one crop."""

    shape: Shape
    spacing_mm: Spacing

    @property
    def extent_mm(self) -> np.ndarray:
        """Edges of the crop (3,)."""
        return np.asarray(self.shape) * np.asarray(self.spacing_mm)

    def radius_from(self, centre_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
        """(D, H, W): distance to the centre in units of the radii; 1 on the surface of the ellipsoid."""
        axes = np.ogrid[tuple(slice(edge) for edge in self.shape)]
        parts = (
            ((axis * step - centre) / radius) ** 2
            for axis, step, centre, radius in zip(axes, self.spacing_mm, centre_mm, radii_mm, strict=True)
        )
        return np.sqrt(sum(parts))


def draw_case(random: np.random.Generator, crop: CropSize, subtype: Subtype) -> PhantomCase:
    """A crop with a lesion of `subtype`; size, shape and place of the lesion do not depend on it."""
    space = _draw_space(random, crop)
    image = _fat_with_organs(random, space)
    centreline = _draw_centreline(random, space)
    radius = PANCREAS_RADIUS * float(space.extent_mm.min()) * random.uniform(0.9, 1.15)
    pancreas = _tube(random, space, centreline, radius)
    image[pancreas] = random.normal(PANCREAS_HU, PANCREAS_SPREAD_HU)

    level, lesion_radius = _draw_lesion(random, space, centreline, radius)
    lesion = level < 1
    rim = lesion & (level > 1 - 1.5 * crop.plane_mm / lesion_radius)
    image[lesion] = random.normal(LESION_HU, LESION_SPREAD_HU) + subtype.offset_hu
    image[rim] += subtype.rim_hu * random.uniform(0.8, 1.2)
    image = ndimage.gaussian_filter(image, BLUR_VOXELS)

    image[lesion] += subtype.texture_hu * random.uniform(0.8, 1.2) * _texture(random, space, subtype)[lesion]
    image[pancreas & ~lesion] += PANCREAS_TEXTURE_HU * _speckle(random, space, 0.8)[pancreas & ~lesion]
    image += random.normal(0, NOISE_HU, space.shape)
    _calcify(random, image, pancreas & ~lesion)
    label = pancreas.astype(np.uint8)
    label[lesion] = 2
    return PhantomCase(
        image=np.rint(image).clip(*INT16_HU).astype(np.int16), label=label, spacing_mm=space.spacing_mm
    )


def _draw_space(random: np.random.Generator, crop: CropSize) -> Space:
    depth, height, width = (
        int(random.integers(low, high + 1)) for low, high in zip(crop.smallest, crop.largest, strict=True)
    )
    slice_mm = round(float(random.uniform(*crop.slice_mm)), 2)
    return Space(shape=(depth, height, width), spacing_mm=(slice_mm, crop.plane_mm, crop.plane_mm))


def _fat_with_organs(random: np.random.Generator, space: Space) -> np.ndarray:
    """Fat that varies slowly, with ellipsoids of bowel and thin long ones of vessels in it."""
    image = random.uniform(*FAT_HU) + 6 * _speckle(random, space, 4.0)
    for _ in range(int(random.integers(3, 7))):
        is_vessel = random.random() < 0.5
        shares = (
            random.uniform((0.5, 0.04, 0.04), (0.9, 0.07, 0.07)) if is_vessel else random.uniform(0.1, 0.2, 3)
        )
        level = space.radius_from(random.uniform(0, 1, 3) * space.extent_mm, shares * space.extent_mm)
        image[level < 1] = random.uniform(*ORGAN_HU)
    return image


def _draw_centreline(random: np.random.Generator, space: Space) -> np.ndarray:
    """(N, 3) points in mm of a curve that runs from head to tail along x, bent in y and rising in z."""
    along = np.linspace(0, 1, 4 * space.shape[2])
    bend, rise = random.uniform(0.08, 0.18), random.uniform(-0.15, 0.15)
    phase = random.uniform(0, np.pi)
    z = 0.5 + rise * (2 * along - 1) + 0.05 * np.sin(2 * np.pi * along + phase)
    y = 0.5 + random.uniform(-0.08, 0.08) + bend * np.sin(1.5 * np.pi * along + phase)
    x = random.uniform(0.1, 0.18) + random.uniform(0.66, 0.72) * along
    return np.stack([z, y, x], axis=1) * space.extent_mm


def _tube(random: np.random.Generator, space: Space, centreline: np.ndarray, radius_mm: float) -> np.ndarray:
    """(D, H, W) bool: what lies within a slowly varying radius of the centreline."""
    wave = np.sin(np.linspace(0, random.uniform(2, 4) * np.pi, len(centreline)) + random.uniform(0, 6))
    radii = radius_mm * (1 + 0.2 * wave)
    voxels = tuple(np.rint(centreline / space.spacing_mm).astype(int).clip(0, np.array(space.shape) - 1).T)
    radius_at = np.zeros(space.shape)
    radius_at[voxels] = radii
    distance = np.empty(space.shape)
    nearest = np.empty((3, *space.shape), dtype=np.int32)
    ndimage.distance_transform_edt(
        radius_at == 0,
        sampling=space.spacing_mm,
        return_indices=True,
        distances=distance,
        indices=nearest,
    )
    return distance < radius_at[tuple(nearest)]


def _draw_lesion(
    random: np.random.Generator, space: Space, centreline: np.ndarray, pancreas_mm: float
) -> tuple[np.ndarray, float]:
    """(D, H, W) level, below 1 in a dented ellipsoid that touches the pancreas, and its radius in mm."""
    spread = float(np.exp(random.normal(0, LESION_RADIUS_SPREAD)))
    radius = pancreas_mm * float(np.clip(LESION_RADIUS * spread, *LESION_RADIUS_LIMITS))
    site = centreline[int(random.uniform(0.1, 0.9) * len(centreline))]
    direction = random.normal(size=3)
    offset = direction / np.linalg.norm(direction) * random.uniform(0, 0.8) * pancreas_mm
    margin = np.asarray(space.spacing_mm) * 2
    centre = np.clip(site + offset, margin, space.extent_mm - margin)
    level = space.radius_from(centre, radius * random.uniform(0.85, 1.15, 3))
    return level * (1 + 0.06 * _speckle(random, space, 2.5)), radius


def _texture(random: np.random.Generator, space: Space, subtype: Subtype) -> np.ndarray:
    """(D, H, W) of unit variance: speckle of the subtype's grain, or stripes in the plane."""
    if subtype.grain_voxels:
        return _speckle(random, space, subtype.grain_voxels)
    angle, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
    _, y, x = np.ogrid[tuple(slice(edge) for edge in space.shape)]
    wave = np.sin(2 * np.pi * (y * np.sin(angle) + x * np.cos(angle)) / subtype.period_voxels + phase)
    return np.broadcast_to(np.sqrt(2) * wave, space.shape)


def _speckle(random: np.random.Generator, space: Space, grain_voxels: float) -> np.ndarray:
    """(D, H, W) Gaussian noise of zero mean and unit variance with that correlation length."""
    field = ndimage.gaussian_filter(random.standard_normal(space.shape, dtype=np.float32), grain_voxels)
    return (field - field.mean()) / field.std()


def _calcify(random: np.random.Generator, image: np.ndarray, pancreas: np.ndarray) -> None:
    """Rarely, a few voxels of the pancreas become chalk (in place)."""
    if random.random() < CALCIFICATION_SHARE:
        inside = np.argwhere(pancreas)
        chosen = inside[random.integers(0, len(inside), size=3)]
        image[tuple(chosen.T)] = random.uniform(*CALCIFICATION_HU, size=3)
