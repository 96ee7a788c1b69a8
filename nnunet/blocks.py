"""Convolution, normalisation and activation; two-dimensional where every kernel of the plan is flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from utils.contracts import Shape, Stage

INSTANCE_NORM_EPS = 1e-5  # Isensee et al. 2021
GROUP_NORM_CHANNELS = 16  # channels per group (Wu & He 2018), more where they cannot be shared out so
FAULTY_DEPTH = 2  # slices; see VolumeConvolution


@final
class VolumeConvolution(nn.Conv3d):
    """torch's 3-D convolution, in float32 where torch computes a wrong gradient in bfloat16.

    On the CPU (torch 2.13, oneDNN) the gradient of the weights is uninitialised memory where the input is
    exactly two slices deep and the kernel spans slices; other depths, kernels and types are right.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """(B, C, D, H, W) -> the convolved maps."""
        is_faulty = input.device.type == "cpu" and input.shape[2] == FAULTY_DEPTH and self.kernel_size[0] > 1
        if not is_faulty:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


CONVOLUTIONS = {2: nn.Conv2d, 3: VolumeConvolution}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
AVERAGE_POOLINGS = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStyle:
    """What all blocks of one network share; `dims` is 2 where every kernel and stride is flat."""

    dims: int = 3
    norm: str = "instance"
    negative_slope: float = 0.01
    bias: bool = True


def spatial_dims(stages: Sequence[Stage]) -> int:
    """2 if no stage looks across slices, else 3."""
    return 2 if all(stage.kernel[0] == 1 and stage.stride[0] == 1 for stage in stages) else 3


def trim(shape: Shape, dims: int) -> tuple[int, ...]:
    """The last `dims` entries of a (D, H, W) triple."""
    return shape[3 - dims :]


def convolution(
    channels_in: int, channels_out: int, kernel: Shape, stride: Shape, style: BlockStyle
) -> nn.Module:
    """A convolution that keeps the size at stride 1."""
    kernel_trimmed = trim(kernel, style.dims)
    return CONVOLUTIONS[style.dims](
        channels_in,
        channels_out,
        kernel_trimmed,
        stride=trim(stride, style.dims),
        padding=tuple(size // 2 for size in kernel_trimmed),
        bias=style.bias,
    )


def upsampling(channels_in: int, channels_out: int, stride: Shape, style: BlockStyle) -> nn.Module:
    """A transposed convolution whose kernel equals its stride."""
    size = trim(stride, style.dims)
    return TRANSPOSED[style.dims](channels_in, channels_out, size, stride=size, bias=True)


def pointwise(channels_in: int, channels_out: int, style: BlockStyle, *, bias: bool = True) -> nn.Module:
    """A 1x1x1 convolution: a segmentation head; without bias, the projection of a skip before its norm."""
    return CONVOLUTIONS[style.dims](channels_in, channels_out, 1, bias=bias)


def average_pooling(stride: Shape, style: BlockStyle) -> nn.Module:
    """The mean over windows of `stride`, which have to fill the maps."""
    return AVERAGE_POOLINGS[style.dims](trim(stride, style.dims))


def normalisation(channels: int, style: BlockStyle) -> nn.Module:
    """The normalisation layer that `style.norm` names, with learned scale and shift."""
    if style.norm == "instance":
        return INSTANCE_NORMS[style.dims](channels, eps=INSTANCE_NORM_EPS, affine=True)
    if style.norm == "batch":
        return BATCH_NORMS[style.dims](channels)
    if style.norm == "group":
        most = max(channels // GROUP_NORM_CHANNELS, 1)
        return nn.GroupNorm(next(count for count in range(most, 0, -1) if channels % count == 0), channels)
    raise ValueError(f"norm should be instance, batch or group, got {style.norm!r}.")


def conv_norm_act(
    channels_in: int, channels_out: int, kernel: Shape, stride: Shape, style: BlockStyle
) -> nn.Module:
    """Convolution, normalisation, leaky ReLU."""
    return nn.Sequential(
        convolution(channels_in, channels_out, kernel, stride, style),
        normalisation(channels_out, style),
        nn.LeakyReLU(style.negative_slope, inplace=True),
    )


def plain_stage(channels_in: int, stage: Stage, style: BlockStyle) -> nn.Module:
    """`stage.num_blocks` convolutions, the first of which carries the stride."""
    blocks = [conv_norm_act(channels_in, stage.channels, stage.kernel, stage.stride, style)]
    for _ in range(stage.num_blocks - 1):
        blocks.append(conv_norm_act(stage.channels, stage.channels, stage.kernel, (1, 1, 1), style))
    return nn.Sequential(*blocks)


def initialise(module: nn.Module, negative_slope: float) -> None:
    """He initialisation of every convolution, biases zero (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(part.weight, a=negative_slope)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def flatten_depth(volume: Tensor, dims: int) -> Tensor:
    """(B, C, D, H, W) as the network sees it: unchanged in 3-D, without its one-slice depth in 2-D."""
    return volume if dims == 3 else volume.squeeze(2)


def restore_depth(maps: Tensor, dims: int) -> Tensor:
    """The inverse of `flatten_depth`."""
    return maps if dims == 3 else maps.unsqueeze(2)
