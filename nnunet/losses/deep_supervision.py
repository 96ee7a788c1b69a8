"""One loss per resolution, halved at every step down."""

from __future__ import annotations


def supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... normalised to sum 1 (Isensee et al. 2021)."""
    raw = [0.5**level for level in range(num_outputs)]
    return tuple(weight / sum(raw) for weight in raw)
