"""Orient, crop and pad a volume; each step stands beside its inverse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.contracts import Shape, Spacing

FEW_OUTSIDE = 0.02  # share of voxels outside a mask that are cheaper to link one by one than to flood
SOON_FLOODED = 2**18  # voxels of a mask that is flooded before anything is linked
WORLD_AXES = ("RL", "AP", "SI")  # x, y and z of the world; the first letter is the positive direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A block of voxels: `start` is inside, `stop` is the first voxel outside, per axis."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Voxels per axis."""
        return as_shape(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the block in the last three axes of a volume."""
        d, h, w = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return d, h, w


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Voxels added before and after each axis."""

    before: Shape
    after: Shape


def as_shape(sizes: Iterable[int]) -> Shape:
    """Three sizes of any kind as a plain tuple of int."""
    d, h, w = (int(size) for size in sizes)
    return d, h, w


def file_axes(orientation: str, axis_order: Shape) -> Shape:
    """For each planned axis, the file axis that runs along it.

    `orientation` holds one letter per file axis, the direction in which the index grows (R, A, S or L, P, I);
    `axis_order` permutes (z, y, x) of the world.
    """
    source = [[i for i, code in enumerate(orientation) if code in pair] for pair in WORLD_AXES]
    if len(orientation) != len(WORLD_AXES) or any(len(found) != 1 for found in source):
        raise ValueError(
            f"Orientation should name each of R/L, A/P and S/I once (for example 'RAS'), got {orientation!r}."
        )
    if sorted(axis_order) != [0, 1, 2]:
        raise ValueError(f"Axis order should be a permutation of (0, 1, 2), got {axis_order}.")
    return as_shape(source[2 - axis][0] for axis in axis_order)


def _flipped_axes(orientation: str, axis_order: Shape) -> tuple[int, ...]:
    """Planned axes, counted from the end, that run against their file axis."""
    sources = file_axes(orientation, axis_order)
    return tuple(i - 3 for i, source in enumerate(sources) if orientation[source] in "LPI")


def to_planned_axes(volume: np.ndarray, *, orientation: str, axis_order: Shape = (0, 1, 2)) -> np.ndarray:
    """A view of (..., X, Y, Z) in file axes as (..., D, H, W): RAS, then (z, y, x), then `axis_order`.

    An oblique scan keeps its own grid: its nearest axis codes decide.
    """
    lead = volume.ndim - 3
    sources = file_axes(orientation, axis_order)
    moved = np.transpose(volume, (*range(lead), *(lead + source for source in sources)))
    return np.flip(moved, _flipped_axes(orientation, axis_order))


def to_file_axes(volume: np.ndarray, *, orientation: str, axis_order: Shape = (0, 1, 2)) -> np.ndarray:
    """Inverse of `to_planned_axes`: a view of (..., D, H, W) as (..., X, Y, Z)."""
    lead = volume.ndim - 3
    back = np.argsort(file_axes(orientation, axis_order))
    straight = np.flip(volume, _flipped_axes(orientation, axis_order))
    return np.transpose(straight, (*range(lead), *(lead + int(axis) for axis in back)))


def planned_spacing(spacing_mm: Spacing, *, orientation: str, axis_order: Shape = (0, 1, 2)) -> Spacing:
    """Spacing of the file axes in the order of the planned axes, in millimetres."""
    d, h, w = (float(spacing_mm[source]) for source in file_axes(orientation, axis_order))
    return d, h, w


def bounding_box(mask: np.ndarray) -> Box:
    """Smallest box around the true voxels of a boolean (D, H, W); the whole volume if there are none."""
    start, stop = [0, 0, 0], list(mask.shape)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if occupied.size == 0:
            return Box(start=(0, 0, 0), stop=as_shape(mask.shape))
        start[axis], stop[axis] = int(occupied[0]), int(occupied[-1]) + 1
    return Box(start=as_shape(start), stop=as_shape(stop))


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Boolean (D, H, W): voxels of (C, D, H, W) that differ from zero in any channel; holes still open."""
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def positive_mask(image: np.ndarray) -> np.ndarray:
    """Boolean (D, H, W): voxels of (C, D, H, W) above zero in any channel, the box of the nvidia preset."""
    mask = image[0] > 0
    for channel in image[1:]:
        mask |= channel > 0
    return mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask with every enclosed cavity filled.

    Call it on the mask cropped to its bounding box: the answer is the same, and most masks are then full.
    """
    outside = np.flatnonzero(~mask)
    if outside.size == 0:
        return mask
    if outside.size > FEW_OUTSIDE * mask.size or mask.size < SOON_FLOODED:
        return np.asarray(ndimage.binary_fill_holes(mask))
    filled = mask.copy()
    filled.reshape(-1)[outside[_is_enclosed(outside, mask.shape)]] = True
    return filled


def _is_enclosed(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """For flat, ascending indices of voxels: whether no path of faces through them leads to the border."""
    # Imported here: a process that prepares small cases need not wait for it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places = np.unravel_index(voxels, shape)
    pairs = []
    for axis, place in enumerate(places):
        step = int(np.prod(shape[axis + 1 :]))
        one = np.flatnonzero(place < shape[axis] - 1)
        other = np.minimum(np.searchsorted(voxels, voxels[one] + step), voxels.size - 1)
        meets = voxels[other] == voxels[one] + step
        pairs.append((one[meets], other[meets]))
    ones, others = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = coo_array((np.ones(ones.size, dtype=bool), (ones, others)), shape=(voxels.size, voxels.size))
    count, component = connected_components(links, directed=False)
    at_border = np.zeros(voxels.size, dtype=bool)
    for place, size in zip(places, shape, strict=True):
        at_border |= (place == 0) | (place == size - 1)
    is_open = np.zeros(count, dtype=bool)
    is_open[component[at_border]] = True
    return ~is_open[component]


def crop(volume: np.ndarray, box: Box) -> np.ndarray:
    """A view of the `box` of (..., D, H, W)."""
    return volume[(..., *box.slices)]


def uncrop(volume: np.ndarray, box: Box, *, shape: Shape, fill: float = 0) -> np.ndarray:
    """Inverse of `crop`: (..., *box.shape) placed in a volume of `shape`, `fill` outside the box."""
    whole = np.full((*volume.shape[:-3], *shape), fill, dtype=volume.dtype)
    whole[(..., *box.slices)] = volume
    return whole


def padding_to(shape: Shape, minimum: Shape) -> Padding:
    """Centred padding that brings `shape` to at least `minimum`; an odd voxel goes to the end."""
    missing = [max(0, least - size) for size, least in zip(shape, minimum, strict=True)]
    before = as_shape(count // 2 for count in missing)
    return Padding(before=before, after=as_shape(n - first for n, first in zip(missing, before, strict=True)))


def pad(volume: np.ndarray, padding: Padding, *, fill: float = 0) -> np.ndarray:
    """(..., D, H, W) with `padding` of value `fill`; the same array if there is none."""
    if not any(padding.before) and not any(padding.after):
        return volume
    widths = [(0, 0)] * (volume.ndim - 3) + list(zip(padding.before, padding.after, strict=True))
    return np.pad(volume, widths, constant_values=fill)


def unpad(volume: np.ndarray, padding: Padding) -> np.ndarray:
    """Inverse of `pad`, as a view."""
    sizes = volume.shape[-3:]
    stop = as_shape(size - after for size, after in zip(sizes, padding.after, strict=True))
    return crop(volume, Box(start=padding.before, stop=stop))
