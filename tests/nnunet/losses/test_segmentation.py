"""Regions and ignored voxels in the loss of the segmentation, by pencil and against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.label_coding import LabelCoding
from nnunet.losses.cross_entropy import voxel_cross_entropy
from nnunet.losses.dice import SMOOTHING, soft_dice_loss
from nnunet.losses.segmentation import SegmentationLoss

REGIONS = LabelCoding(num_labels=3, regions=((1, 2), (2,)))
IGNORING = {
    "labels": LabelCoding(num_labels=3, ignore_label=3),
    "regions": LabelCoding(num_labels=3, regions=((1, 2), (2,)), ignore_label=3),
}
ONE = torch.ones(1)


def rows(*channels: tuple[float, ...]) -> Tensor:
    """(1, C, 1, 1, W) from one tuple per channel."""
    return torch.tensor(channels).view(1, len(channels), 1, 1, -1)


def target_of(kind: str, labels: Tensor) -> Tensor:
    """What the loader delivers for (B, 1, *spatial) label values, 3 of them ignored."""
    if kind == "labels":
        return labels.to(torch.int16)
    members = [(labels == 1) | (labels == 2), labels == 2, labels == 3]
    return torch.cat(members, dim=1).to(torch.uint8)


def random_volume(kind: str, *, cases: int = 2) -> tuple[Tensor, Tensor]:
    """Logits with a gradient, and label values 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    channels = 3 if kind == "labels" else 2
    logits = torch.randn(cases, channels, 2, 3, 4, generator=generator).requires_grad_()
    return logits, torch.randint(0, 4, (cases, 1, 2, 3, 4), generator=generator)


# --- regions -----------------------------------------------------------------------------------------------


def test_dice_of_two_regions_in_two_undecided_voxels() -> None:
    # Region 0 holds both voxels, region 1 none: 2 * (1/2 + 1/2) / (1 + 2), and 0 / (1 + 0).
    loss = soft_dice_loss(
        rows((0.0, 0.0), (0.0, 0.0)), rows((1, 1), (0, 0)), ONE, pooled=False, coding=REGIONS
    )
    assert loss.item() == pytest.approx(-(2 / 3 + 0) / 2, abs=1e-5)


def test_cross_entropy_of_regions_is_the_mean_over_voxels_and_regions() -> None:
    logits = rows((0.0, math.log(3)), (math.log(3), 0.0))
    loss = voxel_cross_entropy(logits, rows((1, 1), (0, 0)), ONE, coding=REGIONS)
    # Probabilities of the truth: 1/2, 3/4, 1/4, 1/2.
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(4 / 3) + math.log(4)) / 4)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_loss_of_regions_agrees_with_numpy(*, pooled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 2, 3, 4, generator=generator)
    target = (torch.rand(2, 2, 2, 3, 4, generator=generator) > 0.5).to(torch.uint8)
    p, t = 1 / (1 + np.exp(-logits.double().numpy())), target.numpy().astype(float)
    axes = (0, 2, 3, 4) if pooled else (2, 3, 4)
    dice = (2 * (p * t).sum(axes) + SMOOTHING) / (p.sum(axes) + t.sum(axes) + SMOOTHING)
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    loss = SegmentationLoss(coding=REGIONS, batch_dice=pooled)((logits,), (target,), torch.ones(2))
    assert loss.item() == pytest.approx(entropy - dice.mean(), abs=1e-6)


def test_a_perfect_prediction_of_regions_costs_minus_one() -> None:
    target = rows((0, 1, 1), (0, 0, 1))
    loss = SegmentationLoss(coding=REGIONS, batch_dice=False)((100 * (target - 0.5),), (target,), ONE)
    assert loss.item() == pytest.approx(-1)


# --- ignored voxels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", IGNORING)
def test_ignored_voxels_change_neither_loss_nor_gradient(kind: str, *, pooled: bool, gamma: float) -> None:
    loss = SegmentationLoss(coding=IGNORING[kind], batch_dice=pooled, focal_gamma=gamma)
    logits, labels = random_volume(kind)
    ignored = (labels == 3).expand_as(logits)
    changed = logits.detach().masked_fill(ignored, 7.0).requires_grad_()
    first, second = (loss((maps,), (target_of(kind, labels),), torch.ones(2)) for maps in (logits, changed))
    assert first.item() == second.item()
    (gradient,), (other,) = torch.autograd.grad(first, logits), torch.autograd.grad(second, changed)
    assert torch.equal(gradient, other)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()


@pytest.mark.parametrize("kind", IGNORING)
def test_the_loss_is_that_of_the_annotated_voxels_alone(kind: str) -> None:
    coding = IGNORING[kind]
    plain = LabelCoding(num_labels=3, regions=coding.regions)
    logits, labels = random_volume(kind, cases=1)
    kept = labels[0, 0] != 3
    few, rest = logits[:, :, kept].view(1, -1, 1, 1, int(kept.sum())), labels[:, :, kept].view(1, 1, 1, 1, -1)
    target = target_of(kind, rest)[:, : 1 if kind == "labels" else 2]
    alone = SegmentationLoss(coding=plain, batch_dice=False)((few,), (target,), ONE)
    loss = SegmentationLoss(coding=coding, batch_dice=False)((logits,), (target_of(kind, labels),), ONE)
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("kind", IGNORING)
def test_each_annotated_voxel_of_the_batch_counts_alike(kind: str) -> None:
    """Three voxels of one case and one of the other: no mean of means."""
    coding = IGNORING[kind]
    labels = torch.tensor([[0, 1, 2, 3], [2, 3, 3, 3]]).view(2, 1, 1, 1, 4)
    logits, _ = random_volume(kind)
    logits = logits.detach()[:, :, :1, :1]
    loss = voxel_cross_entropy(logits, target_of(kind, labels), torch.ones(2), coding=coding)
    kept = (labels != 3).expand_as(logits)
    if kind == "labels":
        of_torch = F.cross_entropy(logits, labels[:, 0].masked_fill(labels[:, 0] == 3, -100))
    else:
        truth = target_of(kind, labels)[:, :2].float()
        of_torch = F.binary_cross_entropy_with_logits(logits[kept], truth[kept])
    assert loss.item() == pytest.approx(of_torch.item(), rel=1e-6)
    half = voxel_cross_entropy(logits, target_of(kind, labels), torch.tensor([1.0, 0.0]), coding=coding)
    alone = voxel_cross_entropy(logits[:1], target_of(kind, labels[:1]), ONE, coding=coding)
    assert half.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", IGNORING)
def test_a_patch_of_which_all_is_ignored_costs_nothing(kind: str, *, pooled: bool, gamma: float) -> None:
    loss = SegmentationLoss(coding=IGNORING[kind], batch_dice=pooled, focal_gamma=gamma)
    logits, labels = random_volume(kind, cases=1)
    cost = loss((logits,), (target_of(kind, torch.full_like(labels, 3)),), ONE)
    (gradient,) = torch.autograd.grad(cost, logits)
    assert cost.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", IGNORING)
def test_a_patch_of_which_all_is_ignored_leaves_the_others_alone(kind: str, *, pooled: bool) -> None:
    loss = SegmentationLoss(coding=IGNORING[kind], batch_dice=pooled)
    logits, labels = random_volume(kind)
    labels[1] = 3
    both = loss((logits,), (target_of(kind, labels),), torch.ones(2))
    alone = loss((logits[:1],), (target_of(kind, labels[:1]),), ONE)
    assert both.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("kind", IGNORING)
def test_half_precision_is_summed_in_single_precision(kind: str) -> None:
    coding = IGNORING[kind]
    labels = torch.ones(1, 1, 64, 64, 32, dtype=torch.int16)
    channels = 3 if kind == "labels" else 2
    logits = torch.zeros(1, channels, 64, 64, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SegmentationLoss(coding=coding, batch_dice=False)((logits,), (target_of(kind, labels),), ONE)
    assert loss.dtype == torch.float32
    # p is 1/3 of a label, 1/2 of a region. Dice of what is there: 2p / (p + 1); of what is not there: 0.
    p = 1 / 3 if kind == "labels" else 1 / 2
    assert loss.item() == pytest.approx(-math.log(p) - p / (p + 1), abs=1e-4)
