"""Additive Gaussian noise, one strength for all channels (nnU-Net v2, step 3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from nvidia.dali import fn, types

from data_loading.augmentations.base import Augmentation, DrawContext, happens
from data_loading.kernels.intensity import add_noise

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

STATE_WORDS = 7  # of 32 bits, as DALI's generators take them
WORD_LIMIT = 2**24  # float32 holds every smaller whole number exactly
PLACE_STEP = 10_368_889  # odd, and about WORD_LIMIT over the golden ratio: places lie far apart
KEYS = 4  # of 32 bits, as the compiled generator takes them


@final
@dataclass(frozen=True)
class Noise(Augmentation):
    """With `probability`, adds noise of a standard deviation uniform in 0..`max_std` (z-scored units).

    All slices of a run get the same strength, and noise of their own.
    Graph and host generate different noise from the same draw; each gives the same for the same draw.
    """

    name: ClassVar[str] = "noise"
    has_twin: ClassVar[bool] = True
    probability: float = 0.1
    max_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("max_std", 0.0, inf)

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:
        """(happens, standard deviation, the state of the generator)."""
        is_wanted = random.random() < self.probability
        state = random.integers(WORD_LIMIT, size=STATE_WORDS)
        # Another key and another counter for each slice of a run, which share all draws.
        state = (state + context.place * PLACE_STEP) % WORD_LIMIT
        return np.array([is_wanted, random.uniform(0.0, self.max_std), *state], np.float32)

    def apply(self, image: DataNode, label: DataNode, drawn: DataNode) -> tuple[DataNode, DataNode]:
        """The noisy image; the label is left alone."""
        if happens(drawn):
            # DALI numbers the noisy samples of a batch and starts from the state of the first. Its own seed
            # would depend on all batches before this one, and could not be restored on every rank.
            state = fn.cast(drawn[2:], dtype=types.DALIDataType.UINT32)
            # The stub lacks the argument, which DALI's imperative interface passes to every random operator.
            image = fn.noise.gaussian(image, stddev=drawn[1], _random_state=state)  # pyright: ignore[reportCallIssue]
        return image, label

    def compute(
        self, image: np.ndarray, label: np.ndarray, drawn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The compiled twin of `apply`, in place."""
        state = drawn[2:].astype(np.int64).tolist()
        keys = np.random.SeedSequence(state).generate_state(KEYS)
        add_noise(image.reshape(-1), drawn[1], keys)
        return image, label
