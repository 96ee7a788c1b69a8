"""Maps of many resolutions: which are read, and how they are combined."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet.blocks import BlockStyle
from nnunet.branches import BRANCHES
from nnunet.branches.base import BranchSite
from nnunet.branches.scales import Scale, depth_of, scales_of
from nnunet.lesion import Anatomy
from utils.contracts import Plan, Stage
from utils.errors import UserError

SIX = tuple(
    Stage(channels=channels, kernel=(3, 3, 3), stride=(1, 1, 1) if channels == 32 else (2, 2, 2))
    for channels in (32, 64, 128, 256, 320, 320)
)
MAPS = (torch.rand(2, 4, 4, 4, 4), torch.rand(2, 6, 2, 2, 2), torch.rand(2, 4, 4, 4, 4))  # encoder, decoder
TWO = (SIX[0], SIX[1])


def build(choice: str, stages: Sequence[Stage] = SIX) -> nn.Module:
    site = BranchSite(
        stages=tuple(stages),
        image_channels=1,
        num_classes=3,
        style=BlockStyle(),
        anatomy=Anatomy(num_labels=3),
    )
    return BRANCHES.build(choice).build(site).eval()


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def small(**options: str) -> nn.Module:
    """The branch for two stages of 4 and 6 channels, without dropout's noise."""
    described = ",".join(f"{name}={value}" for name, value in options.items())
    stages = (
        Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1)),
        Stage(channels=6, kernel=(3, 3, 3), stride=(2, 2, 2)),
    )
    return build(f"multi_scale:{described}", stages)


def test_the_published_sum_head_has_its_published_size() -> None:
    head = build("multi_scale:arms=decoder,pool=max,grid=4,combine=mix,hidden=0")
    assert round(count(head) / 1e6, 2) == 9.34


def test_the_published_simple_head_has_its_published_size() -> None:
    assert count(build("bottleneck")) == 320 * 3 + 3


@pytest.mark.parametrize(
    ("arms", "wanted", "indices"),
    [
        ("encoder", (), (0, 1, 2, 3, 4, 5)),
        ("decoder", (), (5, 6, 7, 8, 9, 10)),
        ("both", (), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        ("both", (2, 4), (2, 4, 8, 10)),
        ("both", (-1, 2, 9), (2, 5, 8)),
        ("decoder", (0, 1), (6, 7)),
        ("encoder", (9,), (5,)),
    ],
)
def test_maps_are_found_in_their_arm_and_the_bottleneck_once(
    arms: str, wanted: tuple[int, ...], indices: tuple[int, ...]
) -> None:
    channels = [stage.channels for stage in (*SIX, *SIX[:-1])]
    expected = tuple(Scale(index=index, channels=channels[index]) for index in indices)
    assert scales_of("multi_scale", arms, wanted, SIX) == expected


@pytest.mark.parametrize(
    ("arms", "wanted", "depth"),
    [("encoder", (1, 3), 4), ("both", (), 6), ("decoder", (), 6), ("decoder", (0, 1), 0)],
)
def test_the_depth_is_that_of_the_last_encoder_map(arms: str, wanted: tuple[int, ...], depth: int) -> None:
    assert depth_of(arms, wanted, len(SIX)) == depth


def test_the_decoder_is_asked_for_only_where_it_is_read() -> None:
    assert not BRANCHES.build("multi_scale:arms=encoder").reads_decoder
    assert BRANCHES.build("multi_scale:arms=decoder").reads_decoder


def perceptron(reader: nn.Module, pooled: Tensor) -> Tensor:
    """Linear, leaky ReLU, linear, from the reader's weights alone."""
    first, last = [part for part in reader.modules() if isinstance(part, nn.Linear)]
    hidden = F.leaky_relu(pooled @ first.weight.T + first.bias, 0.01)
    return hidden @ last.weight.T + last.bias


def test_sum_adds_the_logits_of_every_map() -> None:
    head = small(arms="encoder", pool="mean", combine="sum")
    means = [maps.mean(dim=(2, 3, 4)) for maps in MAPS[:2]]
    readers: Sequence[nn.Module] = list(head.get_submodule("readers").children())
    expected = perceptron(readers[0], means[0]) + perceptron(readers[1], means[1])
    torch.testing.assert_close(head(MAPS[:2], torch.zeros(2, 3, 4, 4, 4)), expected)


def test_mix_weighs_the_logits_of_every_map() -> None:
    head = small(arms="decoder", pool="max", combine="mix", grid="2")
    readers: Sequence[nn.Module] = list(head.get_submodule("readers").children())
    pooled = [F.max_pool3d(MAPS[1], 1), F.max_pool3d(MAPS[2], 2)]
    logits = [perceptron(reader, maps.flatten(1)) for reader, maps in zip(readers, pooled, strict=True)]
    mixing = head.get_submodule("combination")
    assert isinstance(mixing, nn.Linear)
    expected = torch.cat(logits, dim=1) @ mixing.weight.T + mixing.bias
    torch.testing.assert_close(head(MAPS, torch.zeros(2, 3, 4, 4, 4)), expected)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("multi_scale:arms=left", "arms should be one of encoder, decoder, both, got 'left'"),
        ("multi_scale:pool=min", "pool should be one of mean, max, both, got 'min'"),
        ("multi_scale:combine=vote", "combine should be one of sum, mix, concat, conv, got 'vote'"),
        ("multi_scale:grid=4+4", "grid should be one number, or three as in 4"),
        ("multi_scale:grid=0", "grid should be at least 1, got 0"),
        ("multi_scale:combine=conv", "combine=conv needs a grid of more than one cell"),
        ("multi_scale:dropout=1.5", "dropout should lie between 0 and 1, got 1.5"),
        ("bottleneck:pool=min", "pool should be one of"),
        ("memory_query:heads=3", "width should be a multiple of heads, got 128 and 3"),
        ("memory_query:queries=0", "queries should be at least 1, got 0"),
        ("roi_scaled:sigma=-1", "sigma should be at least 0, got -1"),
        ("roi_scaled:target_share=2", "target_share should lie between 0 and 1, got 2"),
        ("roi_pooled:roi_label=3", "label of the lesion should lie between 1 and 2"),
        ("simple:hidden=0", "hidden should be at least 1, got 0"),
    ],
)
def test_an_option_without_meaning_is_refused_by_name(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(choice)


def test_scales_are_told_apart(make_plan: Callable[..., Plan]) -> None:
    """Equal maps at two places of the network are not the same tokens."""
    stage = Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1))
    head = build("memory_query:arms=encoder,stages=0+1,width=8,heads=2", (stage, stage))
    one, other = torch.rand(1, 4, 4, 4, 4), torch.rand(1, 4, 4, 4, 4)
    logits = torch.zeros(1, 3, 4, 4, 4)
    assert not torch.allclose(head((one, other), logits), head((other, one), logits), atol=1e-4)
