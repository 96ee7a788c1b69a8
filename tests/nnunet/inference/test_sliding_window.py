"""Windows over a volume, with networks whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet.inference.mirroring import LeftRight
from nnunet.inference.sliding_window import (
    CLASS_VOTES,
    WindowRule,
    blend_weight,
    predict_volume,
    window_starts,
)
from nnunet.label_coding import LabelCoding
from utils.contracts import ModelOutput, Shape
from utils.errors import UserError

RULE = WindowRule(patch=(4, 6, 8))
SHAPES = [(4, 6, 8), (7, 11, 13), (3, 5, 7), (2, 13, 8), (1, 1, 1), (9, 6, 25)]


def identity(windows: Tensor) -> ModelOutput:
    """The image as logits: three channels become three labels."""
    return ModelOutput(label_logits=(windows,))


def volume_of(shape: Shape) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))


def most_likely_class(windows: Tensor) -> ModelOutput:
    """Class 1 where the window holds a voxel above 10, which is also the lesion (label 1)."""
    bright = (windows > 10).flatten(1).any(dim=1).float()
    logits = torch.cat([torch.zeros_like(windows), windows - 10], dim=1)
    return ModelOutput(label_logits=(logits,), class_logits=torch.stack([1 - bright, bright * 3], dim=1))


def nnunet_starts(size: int, patch: int, overlap: float) -> list[int]:
    """nnU-Net's rule, written from its description: evenly spaced, at most a target step apart."""
    steps = int(np.ceil((size - patch) / (patch * (1 - overlap)))) + 1
    distance = (size - patch) / (steps - 1) if steps > 1 else 0.0
    return [int(np.round(distance * index)) for index in range(steps)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("size", "patch"), [(8, 8), (9, 8), (100, 40), (127, 64), (20, 7)])
def test_starts_are_those_of_nnunet(size: int, patch: int, overlap: float) -> None:
    assert list(window_starts(size, patch, overlap)) == nnunet_starts(size, patch, overlap)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("size", "patch"), [(9, 8), (100, 40), (127, 64), (20, 7)])
def test_windows_cover_the_axis_and_stay_inside(size: int, patch: int, overlap: float) -> None:
    covered = np.zeros(size, int)
    starts = window_starts(size, patch, overlap)
    for start in starts:
        assert 0 <= start <= size - patch
        covered[start : start + patch] += 1
    assert covered.min() >= 1
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5])
def test_an_overlap_that_never_advances_is_refused(overlap: float) -> None:
    with pytest.raises(UserError, match="--overlap should be at least 0 and below 1"):
        WindowRule(patch=(1, 8, 8), overlap=overlap)


def test_a_batch_without_windows_is_refused() -> None:
    with pytest.raises(UserError, match="--val_batch_size should be at least 1, got 0"):
        WindowRule(patch=(1, 8, 8), batch_size=0)


def test_a_slice_is_predicted_once_whatever_the_overlap() -> None:
    assert window_starts(33, 1, 0.5) == tuple(range(33))


def test_an_axis_within_one_patch_needs_one_window() -> None:
    assert window_starts(5, 8, 0.5) == window_starts(8, 8, 0.5) == (0,)


def test_forty_voxels_by_twenty_overlap_half_in_three_windows() -> None:
    assert window_starts(40, 20, 0.5) == (0, 10, 20)


def test_the_gaussian_is_one_in_the_middle_symmetric_and_never_zero() -> None:
    weight = blend_weight(replace(RULE, patch=(5, 7, 9)))
    assert weight[2, 3, 4] == weight.max() == 1
    assert weight.min() > 0
    torch.testing.assert_close(weight, weight.flip((0, 1, 2)))


def test_the_gaussian_falls_to_the_density_of_its_sigma() -> None:
    weight = blend_weight(replace(RULE, patch=(1, 1, 33)))[0, 0]
    assert weight[16 + 4].item() == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-5)


def test_a_constant_blend_weighs_every_voxel_alike() -> None:
    assert torch.equal(blend_weight(replace(RULE, blend="constant")), torch.ones(RULE.patch))


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_network_gives_the_volume_back(shape: Shape, blend: str) -> None:
    volume = volume_of(shape)
    output = predict_volume(identity, volume, replace(RULE, blend=blend))
    torch.testing.assert_close(output.label_logits, volume[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_network_gives_its_constant(shape: Shape, *, mirror: bool) -> None:
    constant = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1)

    def network(windows: Tensor) -> ModelOutput:
        return ModelOutput(label_logits=(constant.expand(len(windows), 2, *windows.shape[2:]),))

    output = predict_volume(network, volume_of(shape), replace(RULE, mirror=mirror))
    torch.testing.assert_close(output.label_logits, constant[0].expand(2, *shape))


def test_mirrored_views_are_turned_back() -> None:
    volume = volume_of((7, 11, 13))
    output = predict_volume(identity, volume, replace(RULE, mirror=True))
    torch.testing.assert_close(output.label_logits, volume[0], atol=1e-5, rtol=1e-5)


def test_mirroring_makes_the_answer_symmetric() -> None:
    """A network that looks to one side answers for both when its mirrored views are averaged."""

    def shifted(windows: Tensor) -> ModelOutput:
        return ModelOutput(label_logits=(windows.roll(1, dims=4),))

    volume = volume_of(RULE.patch)
    output = predict_volume(shifted, volume, replace(RULE, mirror=True))
    expected = (volume.roll(1, dims=4) + volume.roll(-1, dims=4)) / 2
    torch.testing.assert_close(output.label_logits, expected[0])


def test_views_that_exchange_left_and_right_answer_alike_where_labels_do_too() -> None:
    """A network that calls what lies on the left label 1 and on the right label 2, whatever it shows."""

    def sided(windows: Tensor) -> ModelOutput:
        half = windows.shape[4] // 2
        logits = torch.zeros(len(windows), 3, *windows.shape[2:])
        logits[:, 1, ..., :half] = windows[:, 0, ..., :half]
        logits[:, 2, ..., half:] = windows[:, 0, ..., half:]
        return ModelOutput(label_logits=(logits,))

    volume = volume_of(RULE.patch)
    expected = predict_volume(sided, volume, RULE).label_logits
    plain = replace(RULE, mirror=True)
    swap = replace(plain, left_right=LeftRight(axis=2, label_order=(0, 2, 1)))
    torch.testing.assert_close(predict_volume(sided, volume, swap).label_logits, expected)
    assert not torch.allclose(predict_volume(sided, volume, plain).label_logits, expected)


def test_views_are_averaged_as_logits() -> None:
    calls = iter(range(8))

    def network(windows: Tensor) -> ModelOutput:
        return ModelOutput(label_logits=(torch.full_like(windows, float(next(calls))),))

    output = predict_volume(network, volume_of(RULE.patch), replace(RULE, mirror=True))
    torch.testing.assert_close(output.label_logits, torch.full((3, *RULE.patch), 3.5))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_does_not_change_the_answer(batch_size: int) -> None:
    volume = torch.zeros(1, 1, 9, 11, 13)
    volume[0, 0, 2, 3, 4], volume[0, 0, 8, 10, 12] = 20.0, 30.0
    alone = predict_volume(most_likely_class, volume, replace(RULE, batch_size=1))
    output = predict_volume(most_likely_class, volume, replace(RULE, batch_size=batch_size))
    torch.testing.assert_close(output.label_logits, alone.label_logits)
    assert output.class_probs is not None
    torch.testing.assert_close(output.class_probs, alone.class_probs)


def test_a_network_without_class_gives_none() -> None:
    assert predict_volume(identity, volume_of((4, 6, 8)), RULE).class_probs is None


def test_windows_without_lesion_have_no_vote() -> None:
    small = torch.zeros(1, 1, *RULE.patch)
    small[0, 0, 1, 2, 3] = 20.0
    large = torch.zeros(1, 1, 40, 60, 80)
    large[0, 0, 1, 2, 3] = 20.0
    rule = replace(RULE, overlap=0.0)
    near, far = predict_volume(most_likely_class, small, rule), predict_volume(most_likely_class, large, rule)
    assert near.class_probs is not None
    expected = torch.tensor([0.0, 3.0]).softmax(dim=0)
    torch.testing.assert_close(near.class_probs, expected)
    torch.testing.assert_close(far.class_probs, expected)


def test_without_any_lesion_all_windows_count_equally() -> None:
    output = predict_volume(most_likely_class, torch.zeros(1, 1, 9, 11, 13), RULE)
    torch.testing.assert_close(output.class_probs, torch.tensor([1.0, 0.0]).softmax(dim=0))


def test_a_larger_lesion_has_a_larger_vote() -> None:
    def by_mean(windows: Tensor) -> ModelOutput:
        bright = (windows > 0).flatten(1).sum(dim=1)
        return ModelOutput(
            label_logits=(torch.cat([torch.full_like(windows, 0.5), windows], dim=1),),
            class_logits=torch.where((bright > 2)[:, None], torch.tensor([50.0, 0]), torch.tensor([0, 50.0])),
        )

    volume = torch.zeros(1, 1, 1, 1, 8)
    volume[..., 0:3], volume[..., 7] = 1.0, 1.0
    output = predict_volume(by_mean, volume, WindowRule(patch=(1, 1, 4), overlap=0.0))
    torch.testing.assert_close(output.class_probs, torch.tensor([0.75, 0.25]))


def by_size(windows: Tensor) -> ModelOutput:
    """Class 0, 1 or 2: as many voxels as are above 0, which are the lesion (label 1)."""
    count = (windows > 0).flatten(1).sum(dim=1).clamp(max=2)
    return ModelOutput(
        label_logits=(torch.cat([torch.full_like(windows, 0.5), windows], dim=1),),
        class_logits=50.0 * torch.nn.functional.one_hot(count, 3).float(),
    )


def two_lesions(num_windows: int) -> Tensor:
    """Windows of four voxels: two lesion voxels in the first, one in the second, none in the others."""
    volume = torch.zeros(1, 1, 1, 1, 4 * num_windows)
    volume[..., 0:2], volume[..., 4] = 1.0, 1.0
    return volume


@pytest.mark.flag("class_vote")
@pytest.mark.parametrize(
    ("class_vote", "expected"),
    [("lesion_mass", [0, 1 / 3, 2 / 3]), ("mean", [1 / 3, 1 / 3, 1 / 3]), ("max_mass", [0.0, 0.0, 1.0])],
)
@pytest.mark.parametrize("mirror", [False, True])
def test_windows_vote_as_asked(class_vote: str, expected: list[float], *, mirror: bool) -> None:
    rule = WindowRule(patch=(1, 1, 4), overlap=0.0, class_vote=class_vote, mirror=mirror)
    output = predict_volume(by_size, two_lesions(3), rule)
    torch.testing.assert_close(output.class_probs, torch.tensor(expected))


@pytest.mark.parametrize("class_vote", CLASS_VOTES)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_only_a_plain_mean_is_moved_by_lesion_free_windows(class_vote: str, overlap: float) -> None:
    rule = WindowRule(patch=(1, 1, 4), overlap=overlap, class_vote=class_vote)
    small, large = (predict_volume(by_size, two_lesions(size), rule).class_probs for size in (3, 30))
    assert small is not None
    assert large is not None
    assert torch.allclose(small, large, atol=1e-6) == (class_vote != "mean")


@pytest.mark.parametrize("class_vote", CLASS_VOTES)
def test_without_any_lesion_every_way_to_vote_is_the_mean(class_vote: str) -> None:
    def by_place(windows: Tensor) -> ModelOutput:
        logits = torch.cat([windows.mean(dim=(2, 3, 4)), torch.zeros(len(windows), 1)], dim=1)
        return ModelOutput(label_logits=(torch.cat([windows, windows - 1], dim=1),), class_logits=logits)

    volume = torch.zeros(1, 1, 1, 1, 8)
    volume[..., 4:] = 50.0
    output = predict_volume(by_place, volume, WindowRule(patch=(1, 1, 4), overlap=0.0, class_vote=class_vote))
    torch.testing.assert_close(output.class_probs, torch.tensor([0.75, 0.25]))


def test_an_unknown_vote_is_refused() -> None:
    with pytest.raises(
        UserError, match="--class_vote should be one of lesion_mass, mean, max_mass, got 'all'"
    ):
        WindowRule(patch=(1, 8, 8), class_vote="all")


def test_logits_of_a_half_precision_network_are_averaged_in_single_precision() -> None:
    def half(windows: Tensor) -> ModelOutput:
        return ModelOutput(label_logits=(windows.half(),))

    assert predict_volume(half, volume_of((7, 11, 13)), RULE).label_logits.dtype == torch.float32


def test_with_regions_the_region_of_the_lesion_votes_though_another_has_more() -> None:
    def by_side(windows: Tensor) -> ModelOutput:
        whole = torch.full_like(windows, 9.0)  # the largest logit everywhere
        is_lesion = windows.flatten(1).any(dim=1)
        return ModelOutput(
            label_logits=(torch.cat([whole, windows - 0.5], dim=1),),
            class_logits=torch.where(is_lesion[:, None], torch.tensor([50.0, 0]), torch.tensor([0, 50.0])),
        )

    volume = torch.zeros(1, 1, 1, 1, 8)
    volume[..., 1] = 1.0
    rule = WindowRule(patch=(1, 1, 4), overlap=0.0, coding=LabelCoding(num_labels=3, regions=((1, 2), (2,))))
    torch.testing.assert_close(predict_volume(by_side, volume, rule).class_probs, torch.tensor([1.0, 0.0]))
