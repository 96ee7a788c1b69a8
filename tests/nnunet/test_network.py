"""The planned network: published sizes, shapes in and out."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from data_preprocessing.topology import nnunet_topology, nvidia_stages, with_blocks
from nnunet.network import Architecture, MultiTaskUNet, default_outputs, output_shapes
from utils.contracts import Plan, Shape, Spacing, Stage

PLAIN = Architecture(branch="none")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A task of NVIDIA's nnU-Net and the size of its network in millions of parameters."""

    patch: Shape
    spacing_mm: Spacing
    channels: int
    labels: int
    millions: float


PUBLISHED = {
    "01_3d": Published(patch=(128, 128, 128), spacing_mm=(1, 1, 1), channels=4, labels=4, millions=31.19),
    "02_3d": Published(
        patch=(80, 192, 160), spacing_mm=(1.37, 1.25, 1.25), channels=1, labels=2, millions=30.78
    ),
    "03_3d": Published(
        patch=(128, 128, 128), spacing_mm=(1, 0.7676, 0.7676), channels=1, labels=3, millions=31.19
    ),
    "04_3d": Published(patch=(40, 56, 40), spacing_mm=(1, 1, 1), channels=1, labels=3, millions=5.60),
    "05_3d": Published(
        patch=(20, 320, 256), spacing_mm=(3.6, 0.62, 0.62), channels=2, labels=3, millions=30.56
    ),
    "06_3d": Published(
        patch=(80, 192, 160), spacing_mm=(1.24, 0.79, 0.79), channels=1, labels=2, millions=30.78
    ),
    "07_3d": Published(
        patch=(40, 224, 224), spacing_mm=(2.5, 0.8, 0.8), channels=1, labels=3, millions=30.75
    ),
    "08_3d": Published(
        patch=(64, 192, 192), spacing_mm=(1.5, 0.8, 0.8), channels=1, labels=3, millions=30.78
    ),
    "09_3d": Published(
        patch=(64, 192, 160), spacing_mm=(1.6, 0.79, 0.79), channels=1, labels=2, millions=31.16
    ),
    "10_3d": Published(
        patch=(56, 192, 160), spacing_mm=(3, 0.78, 0.78), channels=1, labels=2, millions=30.75
    ),
    "01_2d": Published(patch=(1, 192, 160), spacing_mm=(1, 1, 1), channels=4, labels=4, millions=20.61),
    "02_2d": Published(
        patch=(1, 320, 256), spacing_mm=(1.37, 1.25, 1.25), channels=1, labels=2, millions=20.61
    ),
    "05_2d": Published(
        patch=(1, 320, 320), spacing_mm=(3.6, 0.62, 0.62), channels=2, labels=3, millions=20.61
    ),
    "07_2d": Published(patch=(1, 512, 512), spacing_mm=(2.5, 0.8, 0.8), channels=1, labels=3, millions=20.61),
    "04_2d": Published(patch=(1, 56, 40), spacing_mm=(1, 1, 1), channels=1, labels=3, millions=1.93),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_network_of_nvidias_rule_has_the_published_size(
    make_plan: Callable[..., Plan], task: str
) -> None:
    given = PUBLISHED[task]
    most = 512 if given.patch[0] == 1 else 320
    stages = nvidia_stages(given.patch, given.spacing_mm, depth=5, min_fmap=4, max_channels=most)
    plan = make_plan(patch=given.patch, stages=stages, num_channels=given.channels, num_labels=given.labels)
    architecture = Architecture(branch="none", conv_bias=False, num_outputs=3, decoder_kernels="below")
    with torch.device("meta"):
        network = MultiTaskUNet(plan, architecture)
    count = sum(weight.numel() for weight in network.parameters())
    assert round(count / 1e6, 2) == given.millions


@pytest.mark.parametrize(
    ("encoder", "blocks", "decoder_blocks", "parameters"),
    [("plain", (2,), 2, 31_196_399), ("residual", (1, 3, 4, 6), 1, 102_350_575)],
)
def test_the_network_of_nnunets_rule_has_its_size(
    make_plan: Callable[..., Plan],
    encoder: str,
    blocks: tuple[int, ...],
    decoder_blocks: int,
    parameters: int,
) -> None:
    topology = with_blocks(nnunet_topology((128, 128, 128), (1.0, 1.0, 1.0)), blocks)
    plan = make_plan(patch=topology.patch, stages=topology.stages, decoder_blocks=decoder_blocks)
    # nnU-Net builds a head for every stage of the decoder.
    architecture = Architecture(encoder=encoder, branch="none", num_outputs=len(plan.stages) - 1)
    with torch.device("meta"):
        network = MultiTaskUNet(plan, architecture)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize("flat", [False, True])
def test_the_planned_output_shapes_are_those_of_the_network(
    make_plan: Callable[..., Plan], *, flat: bool
) -> None:
    plan = make_plan(flat=flat)
    output = MultiTaskUNet(plan, Architecture(branch="none", num_outputs=2))(torch.zeros(1, 1, *plan.patch))
    shapes = tuple(tuple(level.shape[2:]) for level in output.label_logits)
    assert shapes == output_shapes(plan, 2)


def test_an_odd_patch_halves_to_the_larger_part(make_plan: Callable[..., Plan]) -> None:
    down = Stage(channels=4, kernel=(3, 3, 3), stride=(2, 2, 2))
    first = Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1))
    plan = make_plan(patch=(5, 7, 8), stages=(first, down, down))
    assert output_shapes(plan, 3) == ((5, 7, 8), (3, 4, 4), (2, 2, 2))


def test_an_odd_edge_that_is_never_pooled_passes_the_network(make_plan: Callable[..., Plan]) -> None:
    first = Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1))
    plan = make_plan(patch=(5, 8, 6), stages=(first, Stage(channels=4, kernel=(3, 3, 3), stride=(1, 2, 2))))
    output = MultiTaskUNet(plan, PLAIN)(torch.zeros(1, 1, 5, 8, 6))
    assert output.label_logits[0].shape == (1, 3, 5, 8, 6)


@pytest.mark.parametrize(("num_stages", "expected"), [(1, 1), (2, 1), (3, 1), (6, 4)])
def test_all_but_the_two_lowest_resolutions_are_supervised(
    make_plan: Callable[..., Plan], num_stages: int, expected: int
) -> None:
    stages = (Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1)),) * num_stages
    assert default_outputs(make_plan(stages=stages)) == expected


def test_the_answer_has_the_same_fields_in_training_and_evaluation(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    network = MultiTaskUNet(plan, Architecture(num_outputs=2))
    image = torch.randn(2, 1, *plan.patch)
    training, evaluation = network(image), network.eval()(image)
    assert (len(training.label_logits), len(evaluation.label_logits)) == (2, 1)
    assert training.class_logits is not None
    assert evaluation.class_logits is not None
    assert training.class_logits.shape == evaluation.class_logits.shape == (2, 2)


@pytest.mark.parametrize(("branch", "num_classes"), [("none", 2), ("roi_pooled", 0), ("simple", 1)])
def test_there_is_no_class_without_branch_or_classes(
    make_plan: Callable[..., Plan], branch: str, num_classes: int
) -> None:
    plan = make_plan(num_classes=num_classes)
    output = MultiTaskUNet(plan, Architecture(branch=branch))(torch.zeros(1, 1, *plan.patch))
    assert output.class_logits is None


def test_a_prior_adds_input_channels(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(prior_labels=2)
    output = MultiTaskUNet(plan, PLAIN)(torch.zeros(1, 3, *plan.patch))
    assert output.label_logits[0].shape == (1, 3, *plan.patch)


def test_a_one_slice_plan_has_no_three_dimensional_weight(make_plan: Callable[..., Plan]) -> None:
    network = MultiTaskUNet(make_plan(flat=True), Architecture())
    assert {weight.ndim for weight in network.parameters()} <= {1, 2, 4}


def test_the_class_loss_moves_the_encoder_but_no_mask(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    network = MultiTaskUNet(plan, Architecture(branch="roi_pooled"))
    class_logits = network(torch.randn(1, 1, *plan.patch)).class_logits
    assert class_logits is not None
    class_logits.sum().backward()
    assert any(weight.grad is not None for weight in network.encoder.parameters())
    assert all(weight.grad is None for weight in network.decoder.parameters())
