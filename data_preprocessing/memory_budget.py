"""Device memory that a patch and its stages need: the element count that planning shrinks the patch by.

nnU-Net (Isensee et al. 2021, version 2) counts the output elements of every convolution of one case and
ignores the weights; the count is compared with one that was measured to fill a device of known memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from utils.contracts import Shape, Stage

RESIDUAL = "residual"  # the encoder whose blocks hold two convolutions beside a skip
MIN_BATCH_SIZE = 2
MAX_DATASET_SHARE = 0.05  # of all voxels of the training set in one batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A network that fills `memory_gb`: the elements of one case, and the cases trained at once.

    The patch is shrunk until a batch of `least_batch_size` fits.
    """

    elements: float
    batch_size: int
    memory_gb: float
    least_batch_size: int = MIN_BATCH_SIZE

    def allowed_elements(self, memory_gb: float) -> float:
        """Elements of one case that are allowed on a device of `memory_gb` at this batch size."""
        return self.elements * memory_gb / self.memory_gb


def count_elements(
    patch: Shape,
    stages: tuple[Stage, ...],
    num_labels: int,
    *,
    encoder: str = "plain",
    decoder_blocks: int = 2,
) -> int:
    """Output elements of all convolutions of a U-Net for one patch.

    A stage of the plain encoder counts `num_blocks` convolutions, one of the residual encoder two per block,
    one for the skip of its first block where that changes the stride or the channels, and the finest one more
    for the stem. Each stage but the last (the bottleneck) counts `decoder_blocks` convolutions and a
    transposed one in the decoder; the finest also the label head (the coarser supervision heads are not
    counted). `num_labels` is the length of the dataset's label list, background and ignore label included.
    """
    total, size = 0, patch
    last = len(stages) - 1
    for level, (stage, maps) in enumerate(zip(stages, _encoder_maps(stages, encoder), strict=True)):
        size = tuple(edge // step for edge, step in zip(size, stage.stride, strict=True))
        above = 0 if level == last else decoder_blocks + 1
        total += (maps + above) * stage.channels * prod(size)
        if level == 0:
            total += num_labels * prod(size)
    return total


def _encoder_maps(stages: tuple[Stage, ...], encoder: str) -> Iterator[int]:
    """Convolutions of each stage of the encoder, in maps of the stage's size."""
    channels = stages[0].channels  # of the stem
    for level, stage in enumerate(stages):
        if encoder != RESIDUAL:
            yield stage.num_blocks
            continue
        has_skip = stage.stride != (1, 1, 1) or stage.channels != channels
        yield 2 * stage.num_blocks + has_skip + (level == 0)
        channels = stage.channels


def exceeds_memory(elements: int, reference: Reference, memory_gb: float) -> bool:
    """Whether even the smallest batch of such patches is more than a device of `memory_gb` holds."""
    per_case = elements / reference.batch_size * reference.least_batch_size
    return per_case > reference.allowed_elements(memory_gb)


def fitting_batch_size(
    patch: Shape, elements: int, reference: Reference, *, memory_gb: float, dataset_voxels: float
) -> int:
    """The largest batch for `memory_gb` that covers at most 5 % of `dataset_voxels`; never below 2."""
    by_memory = round(reference.allowed_elements(memory_gb) / elements * reference.batch_size)
    by_dataset = round(dataset_voxels * MAX_DATASET_SHARE / prod(patch))
    return max(min(by_memory, by_dataset), MIN_BATCH_SIZE)
