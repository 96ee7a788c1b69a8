"""Which weights of a network learn: what is frozen, and what no loss reaches, keeps its values."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from nnunet.network import MultiTaskUNet
from nnunet.options import LossOptions, TrainingOptions
from utils.contracts import Plan, Shape
from utils.errors import UserError

FROZEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"none": (), "encoder": ("encoder",), "backbone": ("encoder", "decoder")}
)


def check_learning(training: TrainingOptions, loss: LossOptions, *, has_class: bool) -> None:
    """UserError for a choice of tasks and frozen parts that leaves nothing to learn, or nothing to weigh."""
    if training.learn == "classification" and not has_class:
        raise UserError(
            "--learn classification needs a class: the dataset has none, or --branch none left it out. "
            "Use --learn segmentation."
        )
    if training.freeze == "backbone" and (training.learn == "segmentation" or not has_class):
        raise UserError(
            "--freeze backbone leaves the branch alone to learn, but this network has none. Use --freeze "
            "encoder, or a dataset with classes and a --branch."
        )
    if loss.task_balance and (not has_class or training.learn != "joint" or training.freeze == "backbone"):
        raise UserError(
            "--task_balance weighs segmentation and class against each other, but only one of the two learns "
            "here. It needs a dataset with classes, a --branch, --learn joint and an unfrozen decoder."
        )


def choose_learning(network: MultiTaskUNet, plan: Plan, training: TrainingOptions) -> None:
    """Freeze what `training` names, and, where the class alone learns, what its loss does not reach.

    Frozen weights have no gradient, so none is computed and no process waits for it. A part of which nothing
    learns is in evaluation mode: the statistics of batch normalisation stay as they are. Lightning keeps
    the modes that it finds.
    """
    for name in FROZEN[training.freeze]:
        network.get_submodule(name).requires_grad_(False)  # noqa: FBT003 - torch's own signature
    if training.learn == "classification":
        _freeze_unreached(network, plan)
    for part in network.children():
        if not any(weight.requires_grad for weight in part.parameters()):
            part.eval()


def learning_names(network: nn.Module) -> list[str]:
    """Names of the weights that learn, in the network's order."""
    return [name for name, weight in network.named_parameters() if weight.requires_grad]


def _freeze_unreached(network: MultiTaskUNet, plan: Plan) -> None:
    """Freeze the weights that the class logits do not depend on, or only through something without gradient.

    The graph of one small image says which they are, whatever the branch reads.
    """
    image = torch.zeros(1, plan.num_channels + plan.prior_labels, *_smallest_image(plan))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.eval()  # no statistic moves, and nothing is drawn
    with torch.enable_grad():
        class_logits = network(image).class_logits
        gradients = torch.autograd.grad(class_logits.sum(), weights, allow_unused=True)
    network.train()
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)


def _smallest_image(plan: Plan) -> Shape:
    """(D, H, W) that leaves two voxels per axis at the lowest stage; a flat plan stays one slice deep."""
    depth, height, width = 2, 2, 2
    for stage in plan.stages:
        depth, height, width = (
            size * step for size, step in zip((depth, height, width), stage.stride, strict=True)
        )
    return (1 if plan.patch[0] == 1 else depth, height, width)
