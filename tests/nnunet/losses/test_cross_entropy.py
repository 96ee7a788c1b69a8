"""Cross-entropy of voxels, by pencil."""

import math

import pytest
import torch

from nnunet.losses.cross_entropy import voxel_cross_entropy


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
