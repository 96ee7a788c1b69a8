"""The bricks of the network."""

import math

import pytest
import torch
from torch import nn

from nnunet.blocks import (
    BlockStyle,
    average_pooling,
    convolution,
    flatten_depth,
    initialise,
    normalisation,
    plain_stage,
    pointwise,
    restore_depth,
    spatial_dims,
    upsampling,
)
from utils.contracts import Shape, Stage

DEEP, FLAT = BlockStyle(dims=3), BlockStyle(dims=2)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (3, 1, 5)])
def test_a_convolution_of_stride_one_keeps_an_odd_size(kernel: Shape) -> None:
    maps = convolution(2, 3, kernel, (1, 1, 1), DEEP)(torch.zeros(1, 2, 5, 7, 9))
    assert maps.shape == (1, 3, 5, 7, 9)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
def test_a_stride_of_two_halves_and_rounds_up(kernel: Shape) -> None:
    maps = convolution(1, 1, kernel, (2, 2, 2), DEEP)(torch.zeros(1, 1, 5, 8, 9))
    assert maps.shape[2:] == (3, 4, 5)


def test_upsampling_multiplies_by_the_stride() -> None:
    maps = upsampling(2, 1, (1, 2, 3), DEEP)(torch.zeros(1, 2, 4, 4, 4))
    assert maps.shape == (1, 1, 4, 8, 12)


def test_two_dimensional_blocks_drop_the_first_entry_of_kernel_and_stride() -> None:
    block = convolution(1, 1, (1, 3, 5), (1, 2, 1), FLAT)
    assert isinstance(block, nn.Conv2d)
    assert (block.kernel_size, block.stride, block.padding) == ((3, 5), (2, 1), (1, 2))


def test_one_kernel_across_slices_makes_the_network_three_dimensional() -> None:
    flat = Stage(channels=4, kernel=(1, 3, 3), stride=(1, 1, 1))
    assert spatial_dims([flat, flat]) == 2
    assert spatial_dims([flat, Stage(channels=4, kernel=(3, 3, 3), stride=(1, 2, 2))]) == 3
    assert spatial_dims([flat, Stage(channels=4, kernel=(1, 3, 3), stride=(2, 2, 2))]) == 3


def test_only_the_first_block_of_a_stage_is_strided() -> None:
    stage = Stage(channels=4, kernel=(3, 3, 3), stride=(2, 2, 2), num_blocks=3)
    module = plain_stage(2, stage, DEEP)
    strides = [part.stride for part in module.modules() if isinstance(part, nn.Conv3d)]
    assert strides == [(2, 2, 2), (1, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize(
    ("norm", "dims", "kind"),
    [
        ("instance", 3, nn.InstanceNorm3d),
        ("instance", 2, nn.InstanceNorm2d),
        ("batch", 3, nn.BatchNorm3d),
        ("batch", 2, nn.BatchNorm2d),
        ("group", 3, nn.GroupNorm),
    ],
)
def test_each_norm_has_its_layer_with_learned_scale(norm: str, dims: int, kind: type[nn.Module]) -> None:
    layer = normalisation(32, BlockStyle(dims=dims, norm=norm))
    assert isinstance(layer, kind)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (64, 4), (50, 2), (53, 1)])
def test_group_norm_has_sixteen_channels_per_group_or_more(channels: int, groups: int) -> None:
    layer = normalisation(channels, BlockStyle(norm="group"))
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_an_unknown_norm_is_named_beside_the_choices() -> None:
    with pytest.raises(ValueError, match="instance, batch or group, got 'layer'"):
        normalisation(4, BlockStyle(norm="layer"))


def test_a_segmentation_head_mixes_channels_only_and_has_a_bias() -> None:
    head = pointwise(8, 3, DEEP)
    assert {tuple(weight.shape) for weight in head.parameters()} == {(3, 8, 1, 1, 1), (3,)}
    projection = pointwise(8, 3, DEEP, bias=False)
    assert {tuple(weight.shape) for weight in projection.parameters()} == {(3, 8, 1, 1, 1)}


def test_average_pooling_is_the_mean_of_a_stride() -> None:
    maps = torch.arange(8.0).view(1, 1, 1, 2, 4)
    assert average_pooling((1, 2, 2), DEEP)(maps).flatten().tolist() == [2.5, 4.5]
    assert average_pooling((1, 2, 2), FLAT)(maps[:, :, 0]).flatten().tolist() == [2.5, 4.5]


def test_convolutions_start_with_the_deviation_of_he() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 64, 3)
    initialise(layer, negative_slope=0.01)
    expected = math.sqrt(2 / (1 + 0.01**2) / (16 * 27))
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_the_bias_of_convolutions_can_be_left_out() -> None:
    layer = convolution(1, 1, (3, 3, 3), (1, 1, 1), BlockStyle(bias=False))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_flattening_the_depth_and_back_is_the_identity() -> None:
    volume = torch.arange(12.0).view(1, 2, 1, 2, 3)
    assert flatten_depth(volume, 2).shape == (1, 2, 2, 3)
    assert torch.equal(restore_depth(flatten_depth(volume, 2), 2), volume)
    assert flatten_depth(volume, 3) is volume


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_in_bfloat16_on_the_cpu_a_convolution_has_the_gradient_of_its_weights(depth: int) -> None:
    """torch 2.13 leaves it uninitialised for two slices: freed memory full of NaN makes that visible."""
    image, seed = torch.randn(2, 16, depth, 3, 4), torch.randn(2, 16, depth, 3, 4)
    layer = convolution(16, 16, (3, 3, 3), (1, 1, 1), BlockStyle())

    def gradient(*, mixed: bool) -> torch.Tensor:
        for size in (2**place for place in range(8, 18)):
            torch.full((size,), math.nan)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            maps = layer(image)
        return torch.autograd.grad((maps.float() * seed).sum(), layer.weight)[0]

    exact = gradient(mixed=False)
    for _ in range(5):
        torch.testing.assert_close(
            gradient(mixed=True), exact, rtol=0.05, atol=0.05 * float(exact.abs().max())
        )
