"""Label maps -> what a network is trained against, and the previous stage's labels as input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIInterpType

from utils.contracts import Plan, Shape

LARGEST_LABEL = 32767  # labels are int16


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRule:
    """What leaves a pipeline beside the image: `shapes` are those of the supervised outputs, finest first.

    Without regions a target is the mask: int16 (1, D, H, W), -1 trained as background, the ignore label kept.
    With regions it is one channel per region, uint8 (R, D, H, W): 1 where the voxel's label is one of the
    region's values; with an ignore label one more, the last, marks it.
    With `prior_labels` P the image gets P more channels, float32: channel p - 1 is 1 where the previous stage
    (map 1 of the label maps) saw label p.
    Coarse targets are nearest neighbours of the fine one (nnU-Net v2, steps 12 to 15).
    """

    shapes: tuple[Shape, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    ignore_label: int | None = None
    prior_labels: int = 0

    @property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """The label values of each binary channel; none where the target is the mask itself."""
        if not self.regions or self.ignore_label is None:
            return self.regions
        return (*self.regions, (self.ignore_label,))


def target_rule(plan: Plan, shapes: Sequence[Shape]) -> TargetRule:
    """The rule of a plan, for outputs of these shapes, finest first."""
    return TargetRule(
        shapes=tuple(shapes),
        regions=plan.regions,
        ignore_label=plan.ignore_label,
        prior_labels=plan.prior_labels,
    )


def targets_on_host(
    image: np.ndarray, label: np.ndarray, rule: TargetRule
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image (C, D, H, W) and label maps (L, D, H, W) -> the network's image and one target per resolution.

    The label maps are the caller's own, and may be changed.
    """
    fine = np.maximum(label[:1], 0, out=label[:1])
    shrunk = [_shrunk(fine, shape) for shape in rule.shapes]
    if rule.channels:
        shrunk = [_members(level[0], rule.channels) for level in shrunk]
    return _with_prior(image, label, rule.prior_labels), shrunk


def _with_prior(image: np.ndarray, label: np.ndarray, prior_labels: int) -> np.ndarray:
    """The image, followed by one channel per label of the previous stage."""
    if prior_labels == 0:
        return image
    channels = len(image)
    joined = np.empty((channels + prior_labels, *image.shape[1:]), np.float32)
    joined[:channels] = image
    for place in range(prior_labels):
        np.equal(label[1], place + 1, out=joined[channels + place])
    return joined


def _members(label: np.ndarray, channels: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(D, H, W) -> uint8 (R, D, H, W): 1 where the label is one of a channel's values."""
    marked = np.empty((len(channels), *label.shape), np.uint8)
    for place, values in enumerate(channels):
        np.equal(label, values[0], out=marked[place])
        for value in values[1:]:
            marked[place] |= label == value
    return marked


def _shrunk(label: np.ndarray, shape: Shape) -> np.ndarray:
    """Nearest neighbour with pixel centres aligned."""
    for axis, size in enumerate(shape, start=1):
        step, rest = divmod(label.shape[axis], size)
        if rest:
            places = (2 * np.arange(size) + 1) * label.shape[axis] // (2 * size)
            label = label.take(places, axis=axis)
        elif step > 1:  # every step-th voxel: a view, copied once at the end
            label = label[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return np.ascontiguousarray(label)


def targets_in_graph(image: DataNode, label: DataNode, rule: TargetRule) -> tuple[DataNode, list[Any]]:
    """The same as graph nodes; the first of `rule.shapes` is that of the label maps."""
    if rule.prior_labels:
        prior = label[1:2]
        is_label = [
            fn.cast(prior == place + 1, dtype=DALIDataType.FLOAT) for place in range(rule.prior_labels)
        ]
        image = _joined([image, *is_label])
    fine: Any = fn.cast(dali_math.clamp(label[:1], 0, LARGEST_LABEL), dtype=DALIDataType.INT16)
    if rule.channels:
        fine = _joined([_member_in_graph(fine, values) for values in rule.channels])
    shapes = [[float(size) for size in shape] for shape in rule.shapes]
    return image, [
        fine if level == 0 else fn.resize(fine, size=shape, interp_type=DALIInterpType.INTERP_NN)
        for level, shape in enumerate(shapes)
    ]


def _joined(nodes: Sequence[Any]) -> Any:
    """Channels one behind the other."""
    return fn.cat(*nodes, axis=0) if len(nodes) > 1 else nodes[0]


def _member_in_graph(label: Any, values: tuple[int, ...]) -> Any:
    is_member = label == values[0]
    for value in values[1:]:
        is_member = is_member | (label == value)
    return fn.cast(is_member, dtype=DALIDataType.UINT8)
