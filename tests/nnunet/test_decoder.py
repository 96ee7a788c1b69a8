"""The ascending arm."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle
from nnunet.decoder import Decoder
from utils.contracts import Plan, Stage

STYLE = BlockStyle()


def feature_maps(stages: Sequence[Stage], shape: Sequence[int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    maps, size = [], list(shape)
    for stage in stages:
        size = [edge // step for edge, step in zip(size, stage.stride, strict=True)]
        maps.append(torch.randn(1, stage.channels, *size, generator=generator))
    return tuple(maps)


def test_training_gives_every_supervised_size_finest_first(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    logits = Decoder(plan.stages, 3, 2, STYLE)(feature_maps(plan.stages, plan.patch))
    assert [tuple(level.shape) for level in logits] == [(1, 3, 4, 16, 16), (1, 3, 4, 8, 8)]


def test_evaluation_computes_the_finest_only_and_the_same(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    decoder = Decoder(plan.stages, 3, 2, STYLE)
    features = feature_maps(plan.stages, plan.patch)
    finest = decoder(features)[0]
    (alone,) = decoder.eval()(features)
    assert torch.equal(alone, finest)


def test_the_last_skip_reaches_the_output(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    decoder = Decoder(plan.stages, 3, 1, STYLE).eval()
    features = feature_maps(plan.stages, plan.patch)
    changed = (features[0] + torch.randn(features[0].shape), *features[1:])
    assert not torch.allclose(decoder(features)[0], decoder(changed)[0])


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_there_is_one_head_per_supervised_size(make_plan: Callable[..., Plan], num_outputs: int) -> None:
    decoder = Decoder(make_plan().stages, 3, num_outputs, STYLE)
    assert len(decoder.heads) == num_outputs


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_every_stage_has_so_many_convolutions_of_stride_one(num_blocks: int) -> None:
    stages = (
        Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1), num_blocks=1),
        Stage(channels=6, kernel=(3, 3, 3), stride=(2, 2, 2), num_blocks=4),
        Stage(channels=8, kernel=(3, 3, 3), stride=(2, 2, 2), num_blocks=6),
    )
    decoder = Decoder(stages, 2, 1, STYLE, num_blocks=num_blocks)
    convolutions = [part for part in decoder.stages.modules() if isinstance(part, nn.Conv3d)]
    assert [part.stride for part in convolutions] == [(1, 1, 1)] * 2 * num_blocks
    assert [part.in_channels for part in convolutions] == [[12, 8], [12, 6, 8, 4]][num_blocks - 1]


def test_kernels_come_from_the_skip_or_from_below(make_plan: Callable[..., Plan]) -> None:
    stages = make_plan().stages
    assert finest_kernel(Decoder(stages, 2, 1, STYLE)) == stages[0].kernel == (1, 3, 3)
    assert finest_kernel(Decoder(stages, 2, 1, STYLE, kernels_from="below")) == stages[1].kernel == (3, 3, 3)


def finest_kernel(decoder: Decoder) -> tuple[int, ...]:
    return [part for part in decoder.stages.modules() if isinstance(part, nn.Conv3d)][-1].kernel_size
