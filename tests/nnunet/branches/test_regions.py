"""The region a branch looks at, by pencil."""

import math

import pytest
import torch
from torch import Tensor

from nnunet.branches.regions import RegionRule, region_shape, smoothed
from nnunet.lesion import Anatomy

LABELS = Anatomy(num_labels=3)
REGIONS = Anatomy(num_labels=3, regions=((1, 2), (2,)))


def logits_of(*labels: int) -> Tensor:
    """(1, 3, 1, 1, W) logits whose largest is that of each voxel's label."""
    label = torch.tensor(labels).view(1, 1, 1, 1, -1)
    return (label == torch.arange(3).view(1, 3, 1, 1, 1)).float()


def region_logits_of(*labels: int) -> Tensor:
    """(1, 2, 1, 1, W) logits, above 0 where the voxel's label is in the region."""
    label = torch.tensor(labels).view(1, 1, 1, -1)
    return torch.stack([(label > 0).float(), (label == 2).float()], dim=1) * 2 - 1


@pytest.mark.parametrize(
    ("labels", "region"),
    [
        ((0, 1, 2, 2), (0, 0, 1, 1)),
        ((0, 1, 1, 0), (0, 1, 1, 0)),
        ((0, 0, 0, 0), (1, 1, 1, 1)),
    ],
    ids=["lesion", "organ where no lesion", "everything where no organ"],
)
@pytest.mark.parametrize("as_regions", [False, True], ids=["labels", "regions"])
def test_the_region_is_the_lesion_then_the_organ_then_the_patch(
    labels: tuple[int, ...], region: tuple[int, ...], *, as_regions: bool
) -> None:
    anatomy, logits = (REGIONS, region_logits_of) if as_regions else (LABELS, logits_of)
    assert RegionRule(anatomy=anatomy).mask(logits(*labels)).flatten().tolist() == list(region)


def test_each_case_of_a_batch_has_its_own_region() -> None:
    logits = torch.cat([logits_of(0, 2), logits_of(0, 1)])
    assert RegionRule(anatomy=LABELS).mask(logits).flatten(1).tolist() == [[0, 1], [0, 1]]


def test_another_label_can_be_the_region() -> None:
    assert RegionRule(anatomy=LABELS, label=1).mask(logits_of(0, 1, 2)).flatten().tolist() == [0, 1, 0]


def test_where_a_gradient_flows_voxels_inside_weigh_by_their_probability() -> None:
    rule = RegionRule(anatomy=LABELS, detach=False)
    sure = math.e / (math.e + 2)
    assert rule.mask(logits_of(0, 2)).flatten().tolist() == pytest.approx([0, sure])


def test_the_probability_is_not_cut_off_outside_the_predicted_lesion() -> None:
    rule = RegionRule(anatomy=LABELS)
    sure, unlikely = math.e / (math.e + 2), 1 / (math.e + 2)
    assert rule.probability(logits_of(0, 2)).flatten().tolist() == pytest.approx([unlikely, sure])


def test_without_a_predicted_lesion_the_organ_weighs_by_its_probability() -> None:
    rule = RegionRule(anatomy=LABELS)
    assert rule.probability(logits_of(0, 1)).flatten().tolist() == pytest.approx(
        [2 / (math.e + 2), (math.e + 1) / (math.e + 2)]
    )


def test_a_target_without_lesion_never_stands_in() -> None:
    rule = RegionRule(anatomy=LABELS, target_share=1.0)
    targets = torch.tensor([[0, 0, 2], [0, 1, 1]]).view(2, 1, 1, 1, 3)
    logits = torch.cat([logits_of(2, 0, 0)] * 2)
    assert rule.mask(logits, targets).flatten(1).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_target_stands_in_for_its_share_of_the_cases() -> None:
    torch.manual_seed(0)
    rule = RegionRule(anatomy=LABELS, target_share=0.25)
    logits = logits_of(2, 0).expand(4000, -1, -1, -1, -1)
    target = torch.tensor([0, 2]).view(1, 1, 1, 1, 2).expand(4000, -1, -1, -1, -1)
    assert rule.mask(logits, target)[..., 1].mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1, 21, 21), (1, 1, 21, 21, 21)], ids=["2-D", "3-D"])
def test_a_point_is_smoothed_to_a_gaussian(shape: tuple[int, ...]) -> None:
    point = torch.zeros(shape)
    centre = (0, 0, *[10] * (len(shape) - 2))
    point[centre] = 1
    blurred = smoothed(point, 2.0)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    along = blurred[(*centre[:-1], slice(None))]
    assert (along[13] / along[10]).item() == pytest.approx(math.exp(-(3**2) / (2 * 2**2)), rel=1e-5)
    assert torch.allclose(blurred, blurred.transpose(-1, -2))


def test_smoothing_leaves_a_constant_map_alone() -> None:
    torch.testing.assert_close(smoothed(torch.full((1, 1, 3, 3), 0.7), 2.0), torch.full((1, 1, 3, 3), 0.7))


def test_without_width_nothing_is_smoothed() -> None:
    maps = torch.rand(1, 1, 4, 4)
    assert smoothed(maps, 0.0) is maps


@pytest.mark.parametrize("dims", [2, 3])
def test_a_box_is_told_by_its_voxels_and_its_edges(dims: int) -> None:
    patch, edges = (8, 16, 32)[3 - dims :], (2, 4, 8)[3 - dims :]
    region = torch.zeros(1, 1, *patch)
    region[(0, 0, *(slice(1, 1 + edge) for edge in edges))] = 1
    voxels, *spread = region_shape(region)[0].tolist()
    assert voxels == pytest.approx(math.log(math.prod(edges) / math.sqrt(math.prod(patch))))
    wanted = [math.log(edge / math.sqrt(size)) for edge, size in zip(edges, patch, strict=True)]
    assert spread == pytest.approx(wanted)


def test_one_voxel_has_a_finite_shape_and_one_half_of_it_the_same_spread() -> None:
    region = torch.zeros(2, 1, 4, 4, 4)
    region[0, 0, 1, 2, 3], region[1, 0, 1, 2, 3] = 1, 0.5
    whole, half = region_shape(region)
    assert whole[0] - half[0] == pytest.approx(math.log(2))
    assert whole[1:].tolist() == pytest.approx([-math.log(2)] * 3)
    assert torch.equal(whole[1:], half[1:])
