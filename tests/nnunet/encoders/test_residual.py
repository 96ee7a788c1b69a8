"""Residual blocks, and the encoder of nnU-Net's ResEnc presets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet.blocks import BlockStyle, initialise
from nnunet.encoders import ENCODERS
from nnunet.encoders.residual import ResidualBlock
from utils.contracts import Shape, Stage

STYLE = BlockStyle()
CUBE: Shape = (3, 3, 3)
RESENC_CHANNELS, RESENC_BLOCKS = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)


def resenc_stages() -> tuple[Stage, ...]:
    """The stages of a ResEnc plan for a patch of 128^3 voxels."""
    return tuple(
        Stage(channels=channels, kernel=CUBE, stride=(2, 2, 2) if level else (1, 1, 1), num_blocks=blocks)
        for level, (channels, blocks) in enumerate(zip(RESENC_CHANNELS, RESENC_BLOCKS, strict=True))
    )


def convolutions(module: nn.Module) -> list[nn.Conv3d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv3d)]


def skip_alone(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a block does while its last normalisation is zero."""
    parts: Any = block
    return lambda maps: nn.functional.leaky_relu(parts.skip(maps), STYLE.negative_slope)


def test_the_encoder_of_a_resenc_preset_has_its_size() -> None:
    with torch.device("meta"):
        encoder = ENCODERS.build("residual").build(1, resenc_stages(), STYLE)
    # Of the 102.35 million parameters of nnU-Net's network, whose decoder has 12.05.
    assert sum(weight.numel() for weight in encoder.parameters()) == 90_296_576


def test_a_stage_has_a_stem_once_and_its_planned_blocks() -> None:
    stages = (
        Stage(channels=4, kernel=(1, 3, 3), stride=(1, 1, 1), num_blocks=1),
        Stage(channels=6, kernel=CUBE, stride=(1, 2, 2), num_blocks=3),
    )
    first, second = ENCODERS.build("residual").build(2, stages, STYLE).stages  # pyright: ignore
    kernels = [layer.kernel_size for layer in convolutions(first)]
    assert kernels == 3 * [(1, 3, 3)]
    strides = [layer.stride for layer in convolutions(second) if layer.kernel_size == CUBE]
    assert strides == [(1, 2, 2), *5 * [(1, 1, 1)]]


def test_a_block_begins_as_its_skip() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 4, 4, 4)
    block = ResidualBlock(4, 4, CUBE, (1, 1, 1), STYLE)
    torch.testing.assert_close(block(maps), nn.functional.leaky_relu(maps, STYLE.negative_slope))


def test_the_skip_of_a_strided_block_is_the_mean() -> None:
    maps = torch.arange(16.0).view(1, 1, 1, 4, 4)
    block = ResidualBlock(1, 1, CUBE, (1, 2, 2), STYLE)
    assert block(maps).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_only_a_change_of_channels_is_projected() -> None:
    assert not list(ResidualBlock(4, 4, CUBE, (2, 2, 2), STYLE).skip.parameters())
    pool, projection, norm = ResidualBlock(4, 6, CUBE, (2, 2, 2), STYLE).skip
    assert isinstance(pool, nn.AvgPool3d)
    assert [tuple(weight.shape) for weight in projection.parameters()] == [(6, 4, 1, 1, 1)]
    assert isinstance(norm, nn.InstanceNorm3d)


def test_once_its_last_norm_has_moved_a_block_is_more_than_its_skip() -> None:
    torch.manual_seed(0)
    block, maps = ResidualBlock(4, 6, CUBE, (1, 2, 2), STYLE), torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(maps), skip_alone(block)(maps))
    nn.init.ones_(block.second[-1].weight)  # pyright: ignore[reportArgumentType]
    assert not torch.allclose(block(maps), skip_alone(block)(maps), atol=0.1)


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_the_initialisation_of_the_network_leaves_the_zeros(norm: str) -> None:
    encoder = ENCODERS.build("residual").build(2, resenc_stages()[:2], BlockStyle(norm=norm))
    initialise(encoder, STYLE.negative_slope)
    blocks = [part for part in encoder.modules() if isinstance(part, ResidualBlock)]
    assert len(blocks) == 4
    assert all(not block.second[-1].weight.any() for block in blocks)  # pyright: ignore
