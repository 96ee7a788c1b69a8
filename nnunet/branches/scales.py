"""Which feature maps of encoder and decoder a branch reads, and where they lie in what it is handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet.branches.base import check_choice, present
from utils.contracts import Stage

ARMS = ("encoder", "decoder", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One feature map: its place among those a branch receives, and its channels."""

    index: int
    channels: int


def _numbers(arms: str, wanted: Sequence[int], num_stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(Stages whose encoder map is read, stages whose decoder map is read)."""
    last = num_stages - 1
    numbers = present(wanted, num_stages)
    encoder = numbers if arms != "decoder" else tuple(number for number in numbers if number == last)
    decoder = tuple(number for number in numbers if number < last) if arms != "encoder" else ()
    return encoder, decoder


def depth_of(arms: str, wanted: Sequence[int], num_stages: int) -> int:
    """How many of the encoder's stages are needed, from the finest down."""
    encoder, _ = _numbers(arms, wanted, num_stages)
    return encoder[-1] + 1 if encoder else 0


def scales_of(owner: str, arms: str, wanted: Sequence[int], stages: Sequence[Stage]) -> tuple[Scale, ...]:
    """The maps of the `wanted` stages (none named: all) in the given arms, the encoder's first.

    The last stage is the bottom of both arms and is read once. A negative stage counts from the last, one
    that the network lacks is left out. UserError in the name of `owner` for an unknown arm.
    """
    check_choice(owner, "arms", arms, ARMS)
    encoder, decoder = _numbers(arms, wanted, len(stages))
    return tuple(
        Scale(index=offset + number, channels=stages[number].channels)
        for offset, chosen in ((0, encoder), (len(stages), decoder))
        for number in chosen
    )
