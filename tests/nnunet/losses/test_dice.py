"""Soft Dice, by pencil."""

import math

import pytest
import torch
from torch import Tensor

from nnunet.losses.dice import soft_dice_loss

ONE = torch.ones(1)
SURE = 50.0  # a logit that makes the softmax 1 in float32


def logits_of(label: Tensor, num_labels: int) -> Tensor:
    """Logits that are certain of `label` (B, 1, *spatial)."""
    labels = torch.arange(num_labels).view(1, -1, *[1] * (label.ndim - 2))
    return SURE * (label == labels).float()


def row(*values: int) -> Tensor:
    """One case of one slice with one row of voxels, (1, 1, 1, 1, W)."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_perfect_prediction_scores_minus_one(*, pooled: bool) -> None:
    label = row(0, 1, 1, 2)
    assert soft_dice_loss(logits_of(label, 3), label, ONE, pooled=pooled).item() == pytest.approx(-1)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_miss_of_every_voxel_scores_zero(*, pooled: bool) -> None:
    loss = soft_dice_loss(logits_of(row(1, 1, 0, 0), 2), row(0, 0, 1, 1), ONE, pooled=pooled)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_two_of_three_predicted_voxels_right_of_four_is_four_sevenths() -> None:
    loss = soft_dice_loss(logits_of(row(1, 1, 1, 0, 0), 2), row(1, 1, 0, 1, 1), ONE, pooled=False)
    assert loss.item() == pytest.approx(-2 * 2 / (3 + 4), abs=1e-5)


def test_an_undecided_prediction_counts_its_probability() -> None:
    loss = soft_dice_loss(torch.zeros(1, 2, 1, 1, 4), row(1, 1, 0, 0), ONE, pooled=False)
    assert loss.item() == pytest.approx(-2 * 1.0 / (2 + 2), abs=1e-5)


def test_labels_have_equal_say_whatever_their_size() -> None:
    loss = soft_dice_loss(logits_of(row(1, 1, 1, 1, 0), 3), row(1, 1, 1, 1, 2), ONE, pooled=False)
    assert loss.item() == pytest.approx(-(1 + 0) / 2, abs=1e-5)


def test_pooling_sums_the_batch_before_dividing() -> None:
    predicted = torch.cat([row(1, 1, 0, 0), row(1, 0, 0, 0)])
    label = torch.cat([row(1, 1, 0, 0), row(0, 1, 1, 1)])
    logits, weights = logits_of(predicted, 2), torch.ones(2)
    assert soft_dice_loss(logits, label, weights, pooled=False).item() == pytest.approx(-0.5, abs=1e-5)
    assert soft_dice_loss(logits, label, weights, pooled=True).item() == pytest.approx(-4 / 8, abs=1e-5)
    label[1, ..., 3] = 0
    assert soft_dice_loss(logits, label, weights, pooled=True).item() == pytest.approx(-4 / 7, abs=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_without_foreground_the_gradient_is_finite(*, pooled: bool) -> None:
    logits = logits_of(row(0, 0, 0), 3).requires_grad_()
    loss = soft_dice_loss(logits, row(0, 0, 0), ONE, pooled=pooled)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("pooled", [False, True])
def test_a_padded_copy_changes_nothing(*, pooled: bool) -> None:
    label = row(0, 1, 1, 0)
    logits = torch.randn(1, 2, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    alone = soft_dice_loss(logits, label, ONE, pooled=pooled)
    both = torch.cat([logits, -3 * logits]).requires_grad_()
    padded = soft_dice_loss(both, torch.cat([label, label]), torch.tensor([1.0, 0.0]), pooled=pooled)
    padded.backward()
    assert padded.item() == pytest.approx(alone.item())
    assert both.grad is not None
    assert not both.grad[1].any()


def test_two_dimensional_maps_are_scored_like_a_volume_of_one_slice() -> None:
    label = row(0, 1, 1, 0)
    logits = torch.randn(1, 2, 1, 1, 4)
    flat = soft_dice_loss(logits[:, :, 0], label[:, :, 0], ONE, pooled=False)
    assert flat.item() == pytest.approx(soft_dice_loss(logits, label, ONE, pooled=False).item())


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    label = torch.ones(1, 1, 64, 64, 32, dtype=torch.int16)
    loss = soft_dice_loss(logits_of(label, 2).half(), label, ONE, pooled=False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-1)
