"""Pooling inside the predicted lesion, by pencil."""

import math

import pytest
import torch
from torch import Tensor

from nnunet.branches.roi_pooled import pool_inside, region_of_interest


def logits_of(*labels: int) -> Tensor:
    """(1, 3, 1, 1, W) logits whose largest is that of each voxel's label."""
    label = torch.tensor(labels).view(1, 1, 1, 1, -1)
    return (label == torch.arange(3).view(1, 3, 1, 1, 1)).float()


@pytest.mark.parametrize(
    ("labels", "region"),
    [
        ((0, 1, 2, 2), (0, 0, 1, 1)),
        ((0, 1, 1, 0), (0, 1, 1, 0)),
        ((0, 0, 0, 0), (1, 1, 1, 1)),
    ],
    ids=["lesion", "organ where no lesion", "everything where no organ"],
)
def test_the_region_is_the_lesion_then_the_organ_then_the_patch(
    labels: tuple[int, ...], region: tuple[int, ...]
) -> None:
    assert region_of_interest(logits_of(*labels), -1).flatten().tolist() == list(region)


def test_each_case_of_a_batch_has_its_own_region() -> None:
    logits = torch.cat([logits_of(0, 2), logits_of(0, 1)])
    assert region_of_interest(logits, -1).flatten(1).tolist() == [[0, 1], [0, 1]]


def test_another_label_can_be_the_region() -> None:
    assert region_of_interest(logits_of(0, 1, 2), 1).flatten().tolist() == [0, 1, 0]


def test_mean_deviation_and_maximum_come_from_inside_only() -> None:
    features = torch.tensor([1.0, 3.0, 100.0, -100.0]).view(1, 1, 1, 1, 4)
    region = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    assert pool_inside(features, region).flatten().tolist() == pytest.approx([2, 1, 3], abs=1e-5)


def test_a_coarse_cell_counts_by_its_share_of_the_region() -> None:
    features = torch.tensor([0.0, 4.0]).view(1, 1, 1, 1, 2)
    region = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 1, 1, 4)
    mean, deviation, highest = pool_inside(features, region).flatten().tolist()
    assert mean == pytest.approx(4 / 3)
    assert deviation == pytest.approx(math.sqrt(2 / 3 * (4 / 3) ** 2 + 1 / 3 * (8 / 3) ** 2), rel=1e-4)
    assert highest == 4


def test_a_lesion_smaller_than_a_cell_does_not_vanish() -> None:
    features = torch.tensor([-5.0, 7.0]).view(1, 1, 1, 1, 2)
    region = torch.zeros(1, 1, 1, 1, 64)
    region[..., 63] = 1
    assert pool_inside(features, region).flatten()[[0, 2]].tolist() == pytest.approx([7, 7])
