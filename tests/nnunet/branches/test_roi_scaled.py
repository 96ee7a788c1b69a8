"""The weights of coarse cells, by pencil."""

import pytest
import torch
from torch import Tensor

from nnunet.branches.regions import RegionRule
from nnunet.branches.roi_scaled import LesionMap
from nnunet.lesion import Anatomy

SURE = 40.0  # a logit beside zeros: a probability of 1


def logits_of(labels: Tensor) -> Tensor:
    """(1, 3, 1, 1, W) certain logits."""
    return SURE * (labels.view(1, 1, 1, 1, -1) == torch.arange(3).view(1, 3, 1, 1, 1)).float()


def weights_of(labels: Tensor, cells: int, sigma: float = 0.0) -> list[float]:
    rule = RegionRule(anatomy=Anatomy(num_labels=3))
    size = torch.Size((1, 1, cells))
    return LesionMap(rule, 0, sigma).weights(logits_of(labels), None, size).flatten().tolist()


def test_a_cell_weighs_by_its_share_of_the_lesion_and_the_largest_weighs_one() -> None:
    labels = torch.tensor([0, 2, 2, 2, 0, 0])
    assert weights_of(labels, 3) == pytest.approx([0.5, 1, 0])


def test_a_lesion_of_one_voxel_keeps_the_weight_one() -> None:
    labels = torch.zeros(4096, dtype=torch.int64)
    labels[4000] = 2
    assert weights_of(labels, 4) == pytest.approx([0, 0, 0, 1])


def test_without_lesion_the_organ_weighs_and_without_organ_all_cells_alike() -> None:
    assert weights_of(torch.tensor([0, 0, 1, 1]), 2) == pytest.approx([0, 1])
    assert weights_of(torch.tensor([0, 0, 0, 0]), 2) == pytest.approx([1, 1])


def test_smoothing_lets_the_neighbour_cell_speak() -> None:
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    sharp, soft = weights_of(labels, 2), weights_of(labels, 2, sigma=2.0)
    assert sharp == pytest.approx([0, 1])
    assert 0 < soft[0] < soft[1] == 1
