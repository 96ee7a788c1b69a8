"""Weights of an earlier run as the start of a new one: what fits is taken, what does not is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nnunet.training.checkpoint import MODEL_KEY, network_weights, read_checkpoint
from utils.errors import DatasetError

NAMED = 3  # weights that a message names; the log has all


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """What was taken from a checkpoint, and the names of the weights that do not fit."""

    checkpoint: Path
    num_loaded: int
    missing: tuple[str, ...]  # the network has them, the checkpoint has not: they start at random
    other_shape: tuple[str, ...]  # both have them, in other shapes: they start at random
    unused: tuple[str, ...]  # the checkpoint alone has them
    dataset: str  # that the checkpoint was trained on; empty if it does not say
    training_cases: tuple[str, ...]
    plan: dict[str, Any] = field(default_factory=dict)  # as the checkpoint holds it; empty if it does not
    prepared_otherwise: tuple[str, ...] = ()  # where its cases were prepared in another way than the new ones

    def __str__(self) -> str:
        """One line; the log has the full lists."""
        parts = [f"{self.num_loaded} weights taken from {self.checkpoint}"]
        for names, meaning in (
            (self.missing, "are not in it and start at random"),
            (self.other_shape, "have another shape there and start at random"),
            (self.unused, "of it have no place here"),
        ):
            if names:
                more = ", ..." if len(names) > NAMED else ""
                parts.append(f"{len(names)} {meaning} ({', '.join(names[:NAMED])}{more})")
        return "; ".join(parts)

    def to_log(self) -> dict[str, Any]:
        """All names, in plain values."""
        return {
            "checkpoint": str(self.checkpoint),
            "num_loaded": self.num_loaded,
            "missing": list(self.missing),
            "other_shape": list(self.other_shape),
            "unused": list(self.unused),
            "prepared_otherwise": list(self.prepared_otherwise),
        }


def load_fitting(path: Path, network: nn.Module) -> WarmStart:
    """Give `network` the weights at `path` that fit by name and shape, the averaged ones where there are any.

    Another patch is no obstacle, other channels are. DatasetError if the file is no checkpoint, or if nothing
    of it fits.
    """
    checkpoint = read_checkpoint(path)
    found, own = network_weights(checkpoint), network.state_dict()
    shared = found.keys() & own.keys()
    fitting = {name: found[name] for name in shared if found[name].shape == own[name].shape}
    if not fitting:
        raise DatasetError(
            f"{path}: none of its {len(found)} weights fits this network by name and shape. Give a "
            "checkpoint of this program, or leave --ckpt_path away to start at random."
        )
    network.load_state_dict(fitting, strict=False)
    card = checkpoint.get(MODEL_KEY, {})
    return WarmStart(
        checkpoint=path,
        num_loaded=len(fitting),
        missing=tuple(name for name in own if name not in found),
        other_shape=tuple(name for name in own if name in shared - fitting.keys()),
        unused=tuple(name for name in found if name not in own),
        dataset=card.get("plan", {}).get("dataset", ""),
        training_cases=tuple(card.get("training_cases", ())),
        plan=card.get("plan", {}),
    )


def refuse_seen(start: WarmStart, dataset: str, held_out: list[str]) -> tuple[str, ...]:
    """The cases of `dataset` that the checkpoint has seen; DatasetError if some are among those `held_out`.

    Every score of such a run would be too good.
    """
    seen = start.training_cases if start.dataset == dataset else ()
    if shared := sorted(set(seen) & set(held_out)):
        raise DatasetError(
            f"{start.checkpoint} was trained on {len(shared)} of the {len(held_out)} cases that this run "
            f"holds out ({', '.join(shared[:NAMED])}, ...): its scores would be too good. Give the --fold "
            "that the checkpoint was trained with."
        )
    return seen
