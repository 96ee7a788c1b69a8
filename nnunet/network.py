"""Encoder + decoder + optional branch: the planned network, which always returns a ModelOutput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from nnunet.blocks import BlockStyle, flatten_depth, initialise, restore_depth, spatial_dims
from nnunet.branches import BRANCHES
from nnunet.branches.base import BranchSite
from nnunet.decoder import Decoder, KernelSource
from nnunet.encoders import ENCODERS
from nnunet.lesion import Anatomy
from utils.contracts import ModelOutput, Plan, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a plan leaves open about the network; saved with the weights, in plain values."""

    encoder: str = "plain"
    branch: str = "roi_pooled"  # none: no class output
    norm: str = "instance"
    negative_slope: float = 0.01
    num_outputs: int = 1  # supervised resolutions
    conv_bias: bool = True
    decoder_kernels: KernelSource = "skip"


@final
class MultiTaskUNet(nn.Module):
    """The U-Net of a plan (Ronneberger et al. 2015; Isensee et al. 2021) and a branch for the class."""

    def __init__(self, plan: Plan, architecture: Architecture) -> None:
        super().__init__()
        self.dims = spatial_dims(plan.stages)
        style = BlockStyle(
            dims=self.dims,
            norm=architecture.norm,
            negative_slope=architecture.negative_slope,
            bias=architecture.conv_bias,
        )
        channels = plan.num_channels + plan.prior_labels
        encoder = ENCODERS.build(architecture.encoder)
        self.encoder = encoder.build(channels, plan.stages, style)
        self.decoder = Decoder(
            plan.stages,
            plan.num_logits,
            architecture.num_outputs,
            style,
            num_blocks=plan.decoder_blocks,
            kernels_from=architecture.decoder_kernels,
        )
        self.branch = self.class_stream = self.fork = None
        self.reads_decoder = self.reads_image = self.takes_guide = False
        if plan.num_classes > 1 and architecture.branch != "none":
            branch = BRANCHES.build(architecture.branch)
            anatomy = Anatomy(num_labels=plan.num_labels, regions=plan.regions)
            self.branch = branch.build(
                BranchSite(
                    stages=plan.stages,
                    image_channels=channels,
                    num_classes=plan.num_classes,
                    style=style,
                    anatomy=anatomy,
                )
            )
            self.class_stream = encoder.build_class_stream(
                plan.stages[: branch.depth(len(plan.stages))], style
            )
            self.fork = encoder.fork() or branch.fork()
            self.reads_decoder, self.reads_image = branch.reads_decoder, branch.reads_image
            self.takes_guide = branch.reads_target
        initialise(self, architecture.negative_slope)

    def forward(self, image: Tensor, guide: Tensor | None = None) -> ModelOutput:
        """Label logits (B, L, D, H, W), finest first, in training at all supervised sizes; class logits.

        `guide` is the batch's finest target: a branch that `takes_guide` may look at it, in training only.
        """
        image = flatten_depth(image, self.dims)
        features = class_features = self.encoder(image)
        fork = self.fork if self.training else None
        if fork is not None:
            features, class_features = fork(features)
        if self.class_stream is not None:
            class_features = self.class_stream(class_features)
        logits, maps = self.decoder.decode(features, keep_maps=self.reads_decoder, fork=fork)
        class_logits = None
        if self.branch is not None:
            seen = None if guide is None else flatten_depth(guide, self.dims)
            read = (*class_features, *maps, image) if self.reads_image else (*class_features, *maps)
            class_logits = self.branch(read, logits[0], seen)
        return ModelOutput(
            label_logits=tuple(restore_depth(level, self.dims) for level in logits), class_logits=class_logits
        )


def default_outputs(plan: Plan) -> int:
    """Supervised resolutions of nnU-Net: every decoder stage but the lowest, at least one."""
    return max(len(plan.stages) - 2, 1)


def output_shapes(plan: Plan, num_outputs: int) -> tuple[Shape, ...]:
    """(D, H, W) of each supervised output for one patch, finest first."""
    shapes, (depth, height, width) = [], plan.patch
    for stage in plan.stages[:num_outputs]:
        depth, height, width = (
            -(-size // step) for size, step in zip((depth, height, width), stage.stride, strict=True)
        )
        shapes.append((depth, height, width))
    return tuple(shapes)
