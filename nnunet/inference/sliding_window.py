"""Overlapping windows over a volume, averaged with a Gaussian weight; the class by predicted lesion mass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.inference.mirroring import LeftRight, View, mirrored_views
from nnunet.label_coding import LabelCoding
from utils.contracts import ModelOutput, Shape
from utils.errors import UserError
from utils.ranges import check_number

GAUSSIAN_SIGMA = 1 / 8  # of the patch edge (Isensee et al. 2021)
CLASS_VOTES = ("lesion_mass", "mean", "max_mass")

Network = Callable[[Tensor], ModelOutput]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """How a volume is cut into windows and put together again.

    `coding` says what the channels of the logits mean; without one they are labels. `class_vote` is what the
    class answer of a window counts: its predicted lesion voxels (`lesion_mass`), the same for all (`mean`),
    or everything for the window with the most lesion in its view (`max_mass`). `left_right` says what the
    axis from left to right needs where views are mirrored; without it, it is like the others.
    """

    patch: Shape
    overlap: float = 0.5
    blend: str = "gaussian"
    batch_size: int = 4
    mirror: bool = False
    coding: LabelCoding | None = None
    class_vote: str = "lesion_mass"
    left_right: LeftRight | None = None

    def __post_init__(self) -> None:
        check_number("overlap", self.overlap, least=0, below=1)
        check_number("val_batch_size", self.batch_size, least=1)
        if self.class_vote not in CLASS_VOTES:
            raise UserError(
                f"--class_vote should be one of {', '.join(CLASS_VOTES)}, got {self.class_vote!r}."
            )

    def coding_of(self, num_channels: int) -> LabelCoding:
        """What logits with so many channels mean."""
        return self.coding or LabelCoding(num_labels=num_channels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowVotes:
    """What the windows of one batch say about the class, for each of V mirrored views.

    `probs` (V, B, K) are the class probabilities, `mass` (V, B) the predicted voxels of lesion.
    """

    probs: Tensor
    mass: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeOutput:
    """What the network says about a whole volume: mean logits (C, D, H, W) and class probabilities (K,)."""

    label_logits: Tensor
    class_probs: Tensor | None


def window_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Evenly spaced corners along one axis, neighbours at most (1 - overlap) * patch apart."""
    if size <= patch:
        return (0,)
    count = int(np.ceil((size - patch) / (patch * (1 - overlap)))) + 1
    starts = np.round(np.linspace(0, size - patch, count)).astype(int)
    # Where steps are shorter than a voxel, rounding repeats some.
    return tuple(dict.fromkeys(starts.tolist()))


def blend_weight(rule: WindowRule) -> Tensor:
    """(D, H, W) weight of a window's voxels: a Gaussian with its zeros lifted, or ones."""
    if rule.blend == "constant":
        return torch.ones(rule.patch)
    axes = []
    for size in rule.patch:
        place = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size * GAUSSIAN_SIGMA)
        axes.append(torch.exp(-0.5 * place.square()))
    weight = torch.einsum("i,j,k->ijk", *axes).float()
    return (weight / weight.max()).clamp_min(float(torch.finfo(torch.float16).tiny))


@torch.inference_mode()
def predict_volume(
    network: Network, volume: Tensor, rule: WindowRule, *, device: torch.device | None = None
) -> VolumeOutput:
    """Run `network` over (1, C, D, H, W) `volume`; its answer lies where the volume lies.

    Windows are taken to `device`, that of the network; None: it is the volume's.
    The volume is padded with zeros, centred, where it is smaller than the patch. Mirrored views are averaged
    as logits. Class probabilities are averaged over windows and views as `rule.class_vote` says: with the
    predicted mass of the lesion (the last label) as weight, a window without lesion has no vote. Where no
    window has any lesion, all count equally.
    """
    padding = centred_padding(tuple(volume.shape[2:]), rule.patch)
    padded = F.pad(volume, padding)
    weight = blend_weight(rule).to(volume.device)
    total: Tensor | None = None
    norm = torch.zeros(padded.shape[2:], device=volume.device)
    votes: list[WindowVotes] = []
    for places in _batches(tuple(padded.shape[2:]), rule):
        windows = torch.cat([cut_window(padded, p, rule.patch) for p in places])
        logits, votes_here = _views(network, windows.to(device), rule)
        if total is None:
            total = torch.zeros((logits.shape[1], *padded.shape[2:]), device=volume.device)
        for place, window in zip(places, logits.to(volume.device), strict=True):
            d, h, w = (slice(start, start + size) for start, size in zip(place, rule.patch, strict=True))
            total[:, d, h, w] += window * weight
            norm[d, h, w] += weight
        if votes_here is not None:
            votes.append(votes_here)
    assert total is not None
    total /= norm
    left, _, top, _, front, _ = padding
    d, h, w = (slice(o, o + s) for o, s in zip((front, top, left), volume.shape[2:], strict=True))
    class_probs = _count(votes, rule.class_vote)
    return VolumeOutput(
        label_logits=total[:, d, h, w],
        class_probs=None if class_probs is None else class_probs.to(volume.device),
    )


def centred_padding(shape: tuple[int, ...], patch: Shape) -> list[int]:
    """F.pad's argument (last axis first) that centres the volume in at least one patch."""
    padding: list[int] = []
    for size, wanted in zip(reversed(shape), reversed(patch), strict=True):
        missing = max(wanted - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return padding


def window_places(shape: tuple[int, ...], rule: WindowRule) -> Iterator[tuple[int, ...]]:
    """First corners of the windows that cover a padded volume, the last axis running fastest."""
    starts = [window_starts(size, patch, rule.overlap) for size, patch in zip(shape, rule.patch, strict=True)]
    return itertools.product(*starts)


def cut_window(volume: Tensor, place: tuple[int, ...], patch: Shape) -> Tensor:
    """The part of (B, C, D, H, W) `volume` under the window at `place`; a view of its memory."""
    d, h, w = (slice(start, start + size) for start, size in zip(place, patch, strict=True))
    return volume[:, :, d, h, w]


def _batches(shape: tuple[int, ...], rule: WindowRule) -> Iterator[list[tuple[int, ...]]]:
    places = window_places(shape, rule)
    while batch := list(itertools.islice(places, rule.batch_size)):
        yield batch


def _views(network: Network, windows: Tensor, rule: WindowRule) -> tuple[Tensor, WindowVotes | None]:
    """Mean logits over the mirrored views, and what each view of the windows says about the class."""
    views = mirrored_views(rule.patch, rule.left_right) if rule.mirror else (View(),)
    mean, probs, masses = None, [], []
    for view in views:
        output = network(view.of(windows))
        logits = view.back(output.label_logits[0].float())
        mean = logits / len(views) if mean is None else mean + logits / len(views)
        if output.class_logits is not None:
            lesion = rule.coding_of(logits.shape[1]).anatomy.is_lesion(logits)
            probs.append(output.class_logits.float().softmax(dim=1))
            masses.append(lesion.flatten(1).sum(dim=1))
    assert mean is not None
    return mean, WindowVotes(probs=torch.stack(probs), mass=torch.stack(masses)) if probs else None


def _count(votes: list[WindowVotes], class_vote: str) -> Tensor | None:
    """(K,) class probabilities of the case; views count alike but for the lesion that they show."""
    if not votes:
        return None
    probs = torch.cat([vote.probs for vote in votes], dim=1)
    mass = torch.cat([vote.mass for vote in votes], dim=1).float()
    weight = mass
    if class_vote == "max_mass":
        largest = mass.argmax(dim=1, keepdim=True)
        weight = torch.zeros_like(mass).scatter(1, largest, (mass.amax(dim=1, keepdim=True) > 0).float())
    if class_vote == "mean":
        weight = torch.ones_like(mass)
    weight = torch.where(weight.any(), weight, torch.ones_like(mass))
    return (probs * weight.unsqueeze(2)).sum(dim=(0, 1)) / weight.sum()
