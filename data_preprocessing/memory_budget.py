"""Device memory that a patch and its stages need: the element count that planning shrinks the patch by.

nnU-Net (Isensee et al. 2021, version 2) counts the output elements of every convolution of one case and
ignores the weights; the count is compared with one that was measured to fill a device of known memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from utils.contracts import Shape, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A plain U-Net that fills `memory_gb`: the elements of one case, and the cases trained at once."""

    elements: float
    batch_size: int
    memory_gb: float


REFERENCE_3D = Reference(elements=560e6, batch_size=2, memory_gb=8.0)
REFERENCE_2D = Reference(elements=85e6, batch_size=12, memory_gb=8.0)
MIN_BATCH_SIZE = 2
MAX_DATASET_SHARE = 0.05  # of all voxels of the training set in one batch


def count_elements(patch: Shape, stages: tuple[Stage, ...], num_labels: int) -> int:
    """Output elements of all convolutions of a plain U-Net for one patch.

    Each stage counts `num_blocks` convolutions in the encoder; each but the last (the bottleneck) as many in
    the decoder and a transposed convolution; the finest also the label head (the coarser supervision heads
    are not counted). `num_labels` is the length of the dataset's label list, background and ignore label
    included.
    """
    total, size = 0, patch
    for level, stage in enumerate(stages):
        size = tuple(edge // step for edge, step in zip(size, stage.stride, strict=True))
        is_bottleneck = level == len(stages) - 1
        maps = stage.num_blocks if is_bottleneck else 2 * stage.num_blocks + 1
        total += maps * stage.channels * prod(size)
        if level == 0:
            total += num_labels * prod(size)
    return total


def reference_for(patch: Shape) -> Reference:
    """The measured network of the same dimension: a patch of one slice is two-dimensional."""
    return REFERENCE_2D if patch[0] == 1 else REFERENCE_3D


def allowed_elements(patch: Shape, memory_gb: float) -> float:
    """Elements of one case that are allowed on a device of `memory_gb` at the reference's batch size."""
    reference = reference_for(patch)
    return reference.elements * memory_gb / reference.memory_gb


def exceeds_memory(patch: Shape, elements: int, memory_gb: float) -> bool:
    """Whether even the smallest batch of such patches is more than a device of `memory_gb` holds."""
    per_case = elements / reference_for(patch).batch_size * MIN_BATCH_SIZE
    return per_case > allowed_elements(patch, memory_gb)


def fitting_batch_size(patch: Shape, elements: int, *, memory_gb: float, dataset_voxels: float) -> int:
    """The largest batch for `memory_gb` that covers at most 5 % of `dataset_voxels`; never below 2."""
    by_memory = round(allowed_elements(patch, memory_gb) / elements * reference_for(patch).batch_size)
    by_dataset = round(dataset_voxels * MAX_DATASET_SHARE / prod(patch))
    return max(min(by_memory, by_dataset), MIN_BATCH_SIZE)
