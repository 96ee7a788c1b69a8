"""Random damage of the previous stage's labels, so that a cascade learns not to trust them blindly.

nnU-Net v2 damages them behind all other augmentations (step 13). Here it happens before they are turned and
scaled, on the host: a DALI graph cannot look for connected components, and so both kinds of pipeline damage
them alike. Where nothing is turned or scaled (64 % of samples) block and patch are one, and the two orders
differ in nothing but the mirror, which a ball and a component ignore. Elsewhere a ball changes its size with
the scale (0.7 to 1.4).
"""

from __future__ import annotations

from math import prod

import numpy as np
from scipy import ndimage

from data_loading.kernels.prior import count_voxels, dilate_by_ball, repaint
from utils.contracts import Shape

# nnU-Net v2.8, the cascade's training transforms
OPERATOR_PROBABILITY = 0.4
REMOVAL_PROBABILITY = 0.2
LABEL_PROBABILITY = 0.5  # of each label, where its kind of damage happens
RADIUS = (1.0, 8.0)  # voxels
LARGEST_SHARE = 0.15  # of the patch; a larger component stays

OPERATORS = ("dilate", "erode", "open", "close")
KEPT = -1.0  # in place of a choice: no operator, or no component to remove
VALUES_PER_LABEL = 4
TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner belong together


def draw_damage(random: np.random.Generator, prior_labels: int) -> np.ndarray:
    """Everything random about the damage of labels 1 to `prior_labels`: float32 (1 + 4 * prior_labels,).

    The first value is 0 where nothing happens. Then for each label: the key that orders the operators, which
    of OPERATORS or -1, its radius in voxels, and which component to remove, from 0 to 1, or -1. Consumes
    2 + 6 * prior_labels random numbers.
    """
    operates, removes = random.random(2)
    key, own, operator, radius, own_removal, component = random.random((6, prior_labels))
    is_operated = (own < LABEL_PROBABILITY) & (operates < OPERATOR_PROBABILITY)
    is_removed = (own_removal < LABEL_PROBABILITY) & (removes < REMOVAL_PROBABILITY)
    low, high = RADIUS
    each = [
        key,
        np.where(is_operated, np.floor(operator * len(OPERATORS)), KEPT),
        low + (high - low) * radius,
        np.where(is_removed, component, KEPT),
    ]
    happens = bool((is_operated | is_removed).any())
    return np.concatenate([[happens], np.stack(each, axis=1).ravel()]).astype(np.float32)


def damage_prior(prior: np.ndarray, drawn: np.ndarray, patch: Shape) -> np.ndarray:
    """A damaged copy of the previous stage's labels (1, D, H, W) int16, a block around the patch.

    `drawn` comes from `draw_damage`. First the operators, label by label: what a label gains is taken from
    the others, what it loses becomes 0. Then one component of each label chosen for it becomes 0, among those
    that show in the middle of the block, where the patch lies, with less than LARGEST_SHARE of the patch.
    """
    damaged = prior.copy()
    labels = damaged[0]
    keys, operators, radii, choices = drawn[1:].reshape(-1, VALUES_PER_LABEL).T
    if (operators != KEPT).any():
        boxes = ndimage.find_objects(labels, max_label=len(keys))
        for place in np.argsort(keys, kind="stable").tolist():
            if operators[place] != KEPT and (box := boxes[place]) is not None:
                operator, radius = OPERATORS[int(operators[place])], float(radii[place])
                _operate(labels[_widened(box, int(radius) + 1, labels.shape)], place + 1, operator, radius)
    if (choices != KEPT).any():
        for place, box in enumerate(ndimage.find_objects(labels, max_label=len(keys))):
            if choices[place] != KEPT and box is not None:
                _remove_component(labels, box, place + 1, float(choices[place]), patch)
    return damaged


def _widened(box: tuple[slice, ...], margin: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box with a margin on all sides, as far as the volume reaches."""
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, size in zip(box, shape, strict=True)
    )


def _operate(labels: np.ndarray, label: int, operator: str, radius: float) -> None:
    """Apply one operator to one label of (D, H, W), in place.

    Beyond the border lies nothing that could grow into the volume: erosion leaves the border alone.
    """
    mask = labels == label
    if operator in ("dilate", "close"):
        mask = dilate_by_ball(mask, radius)
    if operator in ("erode", "open", "close"):
        mask = ~dilate_by_ball(~mask, radius)
    if operator == "open":
        mask = dilate_by_ball(mask, radius)
    repaint(labels, mask, label)


def _remove_component(
    labels: np.ndarray, box: tuple[slice, ...], label: int, choice: float, patch: Shape
) -> None:
    """Set one component of a label, which lies within `box`, to 0."""
    part = labels[box]
    components = np.empty(part.shape, np.int32)
    number = ndimage.label(part == label, TOUCHING, output=components)
    shown = count_voxels(components[_patch_in(box, labels.shape, patch)], number)[1:]
    eligible = np.flatnonzero((shown > 0) & (shown < LARGEST_SHARE * prod(patch))) + 1
    if eligible.size:
        # Rounded to single precision a choice may be 1.
        chosen = eligible[min(int(choice * eligible.size), eligible.size - 1)]
        part[components == chosen] = 0


def _patch_in(box: tuple[slice, ...], block: tuple[int, ...], patch: Shape) -> tuple[slice, ...]:
    """Where the patch in the middle of a block lies, counted from the corner of a box; maybe nowhere."""
    corners = [(given - size) // 2 for given, size in zip(block, patch, strict=True)]
    return tuple(
        slice(max(corner - side.start, 0), max(corner + size - side.start, 0))
        for corner, size, side in zip(corners, patch, box, strict=True)
    )
