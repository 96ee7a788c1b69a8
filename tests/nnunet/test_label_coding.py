"""What logits and targets mean, by pencil."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunet.label_coding import LabelCoding
from utils.contracts import Plan

LABELS = LabelCoding(num_labels=3)
REGIONS = LabelCoding(num_labels=3, regions=((1, 2), (2,)))


def voxels(*channels: tuple[float, ...]) -> Tensor:
    """(1, C, 1, 1, W) from one tuple per channel."""
    return torch.tensor(channels).view(1, len(channels), 1, 1, -1)


def rows_of(maps: Tensor) -> list[list[float]]:
    return maps.reshape(maps.shape[1], -1).tolist()


def test_it_is_read_from_the_plan(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(regions=((1, 2), (2,)), ignore_label=3)
    assert LabelCoding.of_plan(plan) == LabelCoding(num_labels=3, regions=((1, 2), (2,)), ignore_label=3)


def test_labels_share_one_probability_and_regions_have_their_own() -> None:
    logits = voxels((0.0,), (2.0,))
    assert LabelCoding(num_labels=2).probabilities(logits).sum().item() == pytest.approx(1)
    assert REGIONS.probabilities(logits).flatten().tolist() == pytest.approx([0.5, 0.880797], abs=1e-6)


def test_background_is_not_scored_but_every_region_is() -> None:
    logits = voxels((0.0,), (0.0,), (0.0,))
    assert LABELS.scored_probabilities(logits).flatten().tolist() == pytest.approx([1 / 3, 1 / 3])
    assert (LABELS.num_scored, REGIONS.num_scored) == (2, 2)


def test_one_label_is_predicted_but_any_number_of_regions() -> None:
    assert rows_of(LABELS.predicted(voxels((9.0, 0.0), (0.0, 1.0), (1.0, 2.0)))) == [
        [False, False],
        [False, True],
    ]
    assert rows_of(REGIONS.predicted(voxels((1.0, 1.0, -1.0), (1.0, -1.0, -1.0)))) == [
        [True, True, False],
        [True, False, False],
    ]


def test_truth_is_where_the_target_says_so() -> None:
    assert rows_of(LABELS.truth(voxels((0, 1, 2)).to(torch.int16))) == [
        [False, True, False],
        [False, False, True],
    ]
    assert rows_of(REGIONS.truth(voxels((0, 1, 1), (0, 0, 1)).to(torch.uint8))) == [
        [False, True, True],
        [False, False, True],
    ]


def test_without_an_ignore_label_all_voxels_count() -> None:
    assert LABELS.counted(voxels((0, 1, 2))) is None


def test_ignored_voxels_are_those_of_the_label_or_of_the_last_channel() -> None:
    labels = LabelCoding(num_labels=3, ignore_label=3).counted(voxels((0, 3, 2)))
    regions = LabelCoding(num_labels=3, regions=((1, 2), (2,)), ignore_label=3).counted(
        voxels((0, 0, 1), (0, 0, 1), (0, 1, 0))
    )
    assert labels is not None
    assert regions is not None
    assert rows_of(labels) == rows_of(regions) == [[True, False, True]]


def test_half_precision_logits_become_single_precision_probabilities() -> None:
    for coding in (LABELS, REGIONS):
        assert coding.probabilities(torch.zeros(1, 3, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.float32
