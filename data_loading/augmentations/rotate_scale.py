"""Rotation and scaling in one resampling (nnU-Net v2, steps 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from nvidia.dali import fn
from nvidia.dali.types import DALIDataType, DALIInterpType

from data_loading.augmentations.base import Augmentation, DrawContext, check_low_high, happens
from data_loading.kernels.warp import warp_image
from data_loading.kernels.warp_label import warp_label, warp_label_nearest
from utils.contracts import OUTSIDE_LABEL, Plan, Shape

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

    from data_loading.readers import StoredCase

ELONGATED = 1.5  # a 2-D patch with edges of a larger ratio turns by a small angle only
ELONGATED_DEGREES = 15.0
PATCH = slice(1, 4)  # places in the drawn vector
MATRIX = slice(4, 13)
LARGEST_LABEL = 32767  # labels are int16
ROUNDING = 0.01  # voxels


@final
@dataclass(frozen=True)
class RotateScale(Augmentation):
    """Turns with `rotation_probability`, and with `scale_probability` changes the size.

    A patch turns by up to `degrees` about each of its axes. A slab of thick slices, or a 2-D patch, turns in
    plane, by up to `plane_degrees` (15 where a 2-D patch is elongated), and keeps its first axis as it is.
    A scale above 1 shows more of the surroundings, so objects become smaller; it is the same for all axes.
    Image linear, 0 outside. Label: each label linear, the largest share wins, or the nearest with
    `nearest=true`; -1 outside.
    """

    name: ClassVar[str] = "rotate_scale"
    has_twin: ClassVar[bool] = True
    reads: ClassVar[bool] = True
    rotation_probability: float = 0.2
    scale_probability: float = 0.2
    degrees: float = 30.0
    plane_degrees: float = 180.0
    low: float = 0.7
    high: float = 1.4
    nearest: bool = False
    largest_label: int = 0  # `for_plan` raises it: the graph weighs the labels one by one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("degrees", 0.0, 180.0)
        self._check_range("plane_degrees", 0.0, 180.0)
        self._check_range("largest_label", 0, LARGEST_LABEL)
        check_low_high(self.name, self.low, self.high)

    def for_plan(self, plan: Plan) -> RotateScale:
        """With all labels of the plan, the ignore label and the previous stage's among them."""
        labels = (plan.num_labels - 1, plan.ignore_label or 0, plan.prior_labels)
        return replace(self, largest_label=max(self.largest_label, *labels))

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, patch (d, h, w), matrix from patch to source offsets (d, h, w), row by row)."""
        turns, *angles = random.random(4)
        scales, size = random.random(2)
        turns, scales = turns < self.rotation_probability, scales < self.scale_probability
        limit = np.deg2rad(self._limit(context))
        matrix = np.eye(3)
        if turns and context.turns_in_plane:
            matrix = _rotation(0, limit * (2 * angles[0] - 1))
        elif turns:
            for axis, angle in enumerate(angles):
                matrix = matrix @ _rotation(axis, limit * (2 * angle - 1))
        if scales:
            factor = self.low + size * (self.high - self.low)
            matrix = matrix @ np.diag([1.0 if context.turns_in_plane else factor, factor, factor])
        return np.array([turns or scales, *context.patch, *matrix.ravel()], np.float32)

    def _limit(self, context: DrawContext) -> float:
        if context.is_slice:
            _, height, width = context.patch
            is_long = max(height, width) / min(height, width) > ELONGATED
            return ELONGATED_DEGREES if is_long else self.plane_degrees
        return self.plane_degrees if context.turns_in_plane else self.degrees

    def source_shape(self, drawn: np.ndarray, patch: Shape) -> Shape:
        """The box around the turned patch, and the neighbours that interpolation needs."""
        if drawn[0] == 0:
            return patch
        matrix = drawn[MATRIX].reshape(3, 3).astype(np.float64)
        half = (np.array(patch) - 1) / 2
        reach = np.abs(matrix) @ half - half
        moves = np.abs(matrix - np.eye(3)).max(axis=1) > 0
        extra = np.where(moves, np.maximum(np.ceil(reach + ROUNDING), 0), 0).astype(int)
        depth, height, width = (int(size + 2 * more) for size, more in zip(patch, extra, strict=True))
        return depth, height, width

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """Image and label maps resampled by DALI, or cut to the patch in the middle of the block."""
        size = fn.cast(drawn[1:4], dtype=DALIDataType.INT64)
        if happens(drawn):
            matrix = self._matrix(label, drawn)
            image = _warp(image, matrix, drawn, 0.0, DALIInterpType.INTERP_LINEAR)
            label = self._warp_label(label, matrix, drawn)
        else:
            image, label = _cut_middle(image, size), _cut_middle(label, size)
        return image, label

    def _matrix(self, label: DataNode, drawn: DataNode) -> Any:
        """DALI's 3 x 4 matrix: axes in the order x, y, z, and a voxel's centre half a voxel from its edge."""
        turn = fn.reshape(drawn[4:13], shape=[3, 3])
        shape: Any = fn.cast(label.shape()[1:], dtype=DALIDataType.FLOAT)
        moved = shape / 2.0 - fn.reductions.sum(turn * fn.reshape(drawn[1:4], shape=[1, 3]), axes=[1]) / 2.0
        forward: Any = fn.cat(turn, fn.reshape(moved, shape=[3, 1]), axis=1)
        rows: Any = fn.cat(forward[2:3], forward[1:2], forward[0:1], axis=0)
        return fn.cat(rows[:, 2:3], rows[:, 1:2], rows[:, 0:1], rows[:, 3:4], axis=1)

    def _warp_label(self, label: DataNode, matrix: DataNode, drawn: DataNode) -> Any:
        if self.nearest:
            return _warp(label, matrix, drawn, OUTSIDE_LABEL, DALIInterpType.INTERP_NN)
        if self.largest_label < 1:
            raise ValueError("rotate_scale has to know the labels that it weighs: build it with for_plan.")
        share = self._share(label, OUTSIDE_LABEL, matrix, drawn)
        winner: Any = fn.cast(share * 0.0 + OUTSIDE_LABEL, dtype=DALIDataType.INT16)
        for value in range(self.largest_label + 1):
            own = self._share(label, value, matrix, drawn)
            is_larger = own > share
            winner = fn.cast(is_larger * value + (is_larger ^ True) * winner, dtype=DALIDataType.INT16)
            share = fn.cast(is_larger, dtype=DALIDataType.FLOAT) * (own - share) + share
        return winner

    def _share(self, label: DataNode, value: int, matrix: DataNode, drawn: DataNode) -> Any:
        """How much of one label value lies at each position."""
        own = fn.cast(label == value, dtype=DALIDataType.FLOAT)
        return _warp(own, matrix, drawn, float(value == OUTSIDE_LABEL), DALIInterpType.INTERP_LINEAR)

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`."""
        depth, height, width = (int(size) for size in drawn[PATCH])
        if drawn[0] == 0:
            return _middle(image, (depth, height, width)), _middle(label, (depth, height, width))
        block = image.shape[1:]
        corner = [(wide - int(size)) // 2 for wide, size in zip(block, drawn[PATCH], strict=True)]
        return self._resample(image, list(label), (corner[0], corner[1], corner[2]), drawn)

    def read(self, case: StoredCase, start: Shape, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `compute` makes of the block around the patch at `start`, without a copy of that block."""
        depth, height, width = (int(size) for size in drawn[PATCH])
        shape = self.source_shape(drawn, (depth, height, width))
        z, y, x = (
            corner - (wide - int(size)) // 2
            for corner, wide, size in zip(start, shape, drawn[PATCH], strict=True)
        )
        voxels = case.image.fetched((z, y, x), shape)
        if voxels.dtype == np.float16:
            voxels = voxels.view(np.uint16)
        maps = [volume.fetched((z, y, x), shape)[0] for volume in case.label_volumes()]
        image, moved = self._resample(voxels, maps, start, drawn)
        if case.label is None:
            moved = np.concatenate([np.full((1, *moved.shape[1:]), OUTSIDE_LABEL, np.int16), moved])
        return image, moved

    def _resample(
        self, voxels: np.ndarray, maps: Sequence[np.ndarray], start: Shape, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The patch whose unturned corner is `start` in `voxels` (C, D, H, W) and `maps` (D, H, W)."""
        depth, height, width = (int(size) for size in drawn[PATCH])
        matrix = drawn[MATRIX].reshape(3, 3)
        middle = (drawn[PATCH].astype(np.float64) - 1) / 2
        turned = matrix.astype(np.float64)
        # Counted from a corner that no position lies below, in single precision like the kernels.
        lowest = np.floor(middle + start - np.abs(turned) @ middle - ROUNDING).astype(np.int64)
        origin = (middle + start - lowest - turned @ middle).astype(np.float32)
        image = np.empty((voxels.shape[0], depth, height, width), np.float32)
        warp_image(voxels, image, matrix, origin, lowest)
        label = np.empty((len(maps), depth, height, width), np.int16)
        warp_one = warp_label_nearest if self.nearest else warp_label
        for source, target in zip(maps, label, strict=True):
            warp_one(source, target, matrix, origin, lowest)
        return image, label


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Rotation by `angle` in radians about one axis of (d, h, w)."""
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _middle(block: np.ndarray, shape: Shape) -> np.ndarray:
    """The (C, *shape) part in the middle of a block; ValueError where the block is smaller."""
    if any(given < size for given, size in zip(block.shape[1:], shape, strict=True)):
        raise ValueError(f"rotate_scale: the block should hold a patch of {shape}, it has {block.shape[1:]}.")
    d, h, w = (
        slice((given - size) // 2, (given - size) // 2 + size)
        for given, size in zip(block.shape[1:], shape, strict=True)
    )
    return np.ascontiguousarray(block[:, d, h, w])


def _cut_middle(node: DataNode, size: Any) -> Any:
    """The same as a graph node."""
    start = (node.shape()[1:] - size) // 2
    return fn.slice(node, start, size, axes=[1, 2, 3])


def _warp(node: DataNode, matrix: DataNode, drawn: DataNode, fill: float, interpolation: Any) -> Any:
    """(C, D, H, W) resampled to the patch; DALI warps channels last."""
    last = fn.transpose(node, perm=[1, 2, 3, 0], output_layout="DHWC")
    warped = fn.warp_affine(last, matrix=matrix, size=drawn[1:4], fill_value=fill, interp_type=interpolation)
    return fn.transpose(warped, perm=[3, 0, 1, 2], output_layout="CDHW")
