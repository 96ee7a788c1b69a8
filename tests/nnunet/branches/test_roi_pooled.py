"""Pooling inside the predicted lesion, by pencil."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunet.blocks import BlockStyle
from nnunet.branches.base import BranchSite
from nnunet.branches.roi_pooled import RoiPooled, pool_inside
from nnunet.lesion import Anatomy
from utils.contracts import Plan


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


def build(branch: RoiPooled, plan: Plan) -> nn.Module:
    site = BranchSite(
        stages=plan.stages,
        image_channels=2,
        num_classes=2,
        style=BlockStyle(),
        anatomy=Anatomy(num_labels=3),
    )
    return branch.build(site).eval()


@pytest.mark.parametrize("choice", ["image", "shape"])
def test_the_level_of_intensities_and_the_size_of_the_region_reach_the_class(
    make_plan: Callable[..., Plan], choice: str
) -> None:
    # Nothing else tells these cases apart: the feature maps are constant.
    label_logits = torch.zeros(2, 3, 4, 16, 16)
    label_logits[:, 2, :2, 4:8, 4:8] = 9
    image = torch.ones(2, 2, 4, 16, 16)
    if choice == "image":
        image[1] = 3
    else:
        label_logits[1, 2, :4, 4:8, 4:8] = 9
    maps = [torch.ones(2, stage.channels, 4, 8, 8) for stage in make_plan().stages]

    def differs(branch: RoiPooled) -> bool:
        first, second = build(branch, make_plan())((*maps, image), label_logits)
        return not torch.allclose(first, second)

    assert differs(RoiPooled())
    assert differs(replace(RoiPooled(image=False, shape=False), **{choice: True}))
    assert not differs(replace(RoiPooled(), **{choice: False}))


def test_voxels_outside_the_lesion_do_not_change_the_class(make_plan: Callable[..., Plan]) -> None:
    branch = build(RoiPooled(stages=(0, 1)), make_plan())
    generator = torch.Generator().manual_seed(0)
    features = tuple(
        torch.randn(1, channels, *size, generator=generator)
        for channels, size in zip(
            (*(stage.channels for stage in make_plan().stages[:2]), 2),
            ((4, 16, 16), (4, 8, 8), (4, 16, 16)),
            strict=True,
        )
    )
    label_logits = torch.randn(1, 3, 4, 16, 16, generator=generator)
    label_logits[:, 2] = -9
    label_logits[:, 2, :2, 4:8, 4:8] = 9  # whole cells of both stages
    inside = torch.zeros(1, 1, 4, 16, 16)
    inside[:, :, :2, 4:8, 4:8] = 1
    masks = (inside, inside[..., ::2, ::2], inside)
    changed = tuple(torch.where(mask > 0, maps, 100.0) for maps, mask in zip(features, masks, strict=True))
    assert torch.equal(branch(features, label_logits), branch(changed, label_logits))
    inverted = tuple(torch.where(mask > 0, 100.0, maps) for maps, mask in zip(features, masks, strict=True))
    assert not torch.allclose(branch(features, label_logits), branch(inverted, label_logits))


def test_a_class_that_differs_by_little_of_what_cases_have_in_common_is_learned(
    make_plan: Callable[..., Plan],
) -> None:
    # One channel's mean tells the classes apart by two of its deviations, a hundredth of its level.
    torch.manual_seed(0)
    plan, generator = make_plan(), torch.Generator().manual_seed(0)
    branch = build(RoiPooled(dropout=0.0, image=False, shape=False), plan).train()
    optimiser = torch.optim.AdamW(branch.parameters(), lr=3e-3)
    levels = [torch.randn(stage.channels, 1, 1, 1, generator=generator) * 5 for stage in plan.stages]
    label_logits = torch.zeros(8, 3, 4, 8, 8)
    label_logits[:, 2] = 9

    def batch(seed: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        random = torch.Generator().manual_seed(seed)
        target = torch.randint(2, (8,), generator=random)
        maps = [
            level + 0.05 * torch.randn(8, len(level), 1, 1, 1, generator=random) + torch.zeros(4, 8, 8)
            for level in levels
        ]
        maps[1][:, 0] += 0.1 * target.view(-1, 1, 1, 1)
        return (*maps, torch.zeros(8, 2, 4, 8, 8)), target

    for step in range(150):
        features, target = batch(step)
        loss = torch.nn.functional.cross_entropy(branch(features, label_logits), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    branch.eval()
    with torch.no_grad():
        held_out = [batch(1000 + seed) for seed in range(20)]
        right = [branch(features, label_logits).argmax(dim=1) == target for features, target in held_out]
    assert torch.cat(right).float().mean() > 0.8  # 0.84 is the most that these cases allow
