"""Cross-entropy of voxels and of cases, by pencil."""

import math

import pytest
import torch

from nnunet.losses.cross_entropy import case_cross_entropy, voxel_cross_entropy
from utils.contracts import NO_CLASS

EVEN = torch.ones(2)


def test_an_undecided_voxel_costs_the_logarithm_of_the_labels() -> None:
    label = torch.zeros(1, 1, 2, 2, 2, dtype=torch.int16)
    loss = voxel_cross_entropy(torch.zeros(1, 3, 2, 2, 2), label, torch.ones(1))
    assert loss.item() == pytest.approx(math.log(3))


def test_a_certain_and_right_voxel_costs_nothing() -> None:
    logits = torch.tensor([50.0, 0.0]).view(1, 2, 1, 1, 1)
    label = torch.zeros(1, 1, 1, 1, 1, dtype=torch.int16)
    assert voxel_cross_entropy(logits, label, torch.ones(1)).item() == pytest.approx(0)


def test_a_padded_copy_changes_no_voxel_loss() -> None:
    label = torch.tensor([0, 1]).view(2, 1, 1, 1, 1)
    logits = torch.tensor([[1.0, 0.0], [9.0, 0.0]]).view(2, 2, 1, 1, 1)
    alone = voxel_cross_entropy(logits[:1], label[:1], torch.ones(1))
    assert voxel_cross_entropy(logits, label, torch.tensor([1.0, 0.0])).item() == pytest.approx(alone.item())


def test_a_batch_of_padded_copies_costs_nothing_and_is_finite() -> None:
    label = torch.zeros(2, 1, 1, 1, 1, dtype=torch.int16)
    assert voxel_cross_entropy(torch.zeros(2, 2, 1, 1, 1), label, torch.zeros(2)).item() == 0


def test_cases_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    loss = case_cross_entropy(logits, torch.tensor([0, 1]), EVEN, EVEN, EVEN)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_a_case_of_unknown_class_is_left_out() -> None:
    logits = torch.tensor([[0.0, 0.0], [7.0, -7.0]]).requires_grad_()
    loss = case_cross_entropy(logits, torch.tensor([1, NO_CLASS]), EVEN, EVEN, EVEN)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert not logits.grad[1].any()


def test_without_a_known_class_loss_and_gradient_are_zero() -> None:
    logits = torch.randn(2, 2).requires_grad_()
    loss = case_cross_entropy(logits, torch.tensor([NO_CLASS, NO_CLASS]), EVEN, EVEN, EVEN)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_padded_copy_changes_no_class_loss() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    loss = case_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), EVEN, EVEN)
    assert loss.item() == pytest.approx(math.log(2))


def test_class_weights_scale_their_class() -> None:
    loss = case_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), EVEN, EVEN, torch.tensor([3.0, 0.5]))
    assert loss.item() == pytest.approx(math.log(2) * (3 + 0.5) / 2)


def test_a_case_of_less_emphasis_counts_less_but_is_counted() -> None:
    loss = case_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), EVEN, torch.tensor([1.0, 0.2]), EVEN)
    assert loss.item() == pytest.approx(math.log(2) * (1 + 0.2) / 2)
