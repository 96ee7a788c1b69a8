"""Two readers of the same maps: the norm of what the second sends back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunet.gradient_fork import GradientFork
from nnunet.network import Architecture, MultiTaskUNet
from utils.contracts import Plan
from utils.errors import UserError


def copies_of(leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Both copies of one map, balanced to equal norms."""
    (one,), (other,) = GradientFork(share=1.0)((leaf,))
    return one, other


def fork_gradients(
    *, balance: float, scale: float, class_weight: float = 0.3, at_most: bool = False
) -> list[Tensor]:
    """Gradients of two leaves behind a fork, for a segmentation and a class loss times a loss scale."""
    leaves = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)]
    (one, two), (three, four) = GradientFork(share=balance, at_most=at_most)(tuple(leaves))
    segmentation = (one.square().sum() + two.sum()) / 7
    classification = class_weight * (three[0] + 5 * four.sum())
    (scale * (segmentation + classification)).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_the_class_gradient_gets_the_norm_of_the_segmentations() -> None:
    first, second = fork_gradients(balance=1.0, scale=1.0)
    segmentation = torch.tensor([6.0, 8.0, 1.0]) / 7
    classification = torch.tensor([1.0, 0.0, 5.0])
    expected = segmentation + classification * segmentation.norm() / classification.norm()
    torch.testing.assert_close(torch.cat([first, second]), expected)


def test_half_the_balance_gives_half_the_norm() -> None:
    full, half, plain = (torch.cat(fork_gradients(balance=b, scale=1.0)) for b in (1.0, 0.5, 1e-9))
    torch.testing.assert_close(half - plain, (full - plain) / 2)


@pytest.mark.parametrize("class_weight", [0.01, 100.0])
def test_neither_loss_scale_nor_loss_weight_change_the_balance(class_weight: float) -> None:
    expected = fork_gradients(balance=1.0, scale=1.0)
    found = fork_gradients(balance=1.0, scale=65536.0, class_weight=class_weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / 65536, other)


def test_a_task_without_gradient_leaves_the_other_alone() -> None:
    for used in (0, 1):
        leaf = torch.tensor([3.0, 4.0], requires_grad=True)
        copies = copies_of(leaf)
        copies[used].square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [6, 8]


@pytest.mark.parametrize("still", [0, 1])
def test_a_task_whose_gradient_is_zero_leaves_the_other_alone(still: int) -> None:
    leaf = torch.tensor([3.0, 4.0], requires_grad=True)
    copies = copies_of(leaf)
    (0 * copies[still].sum() + copies[1 - still].square().sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [6, 8]


@pytest.mark.parametrize("overflown", [0, 1])
def test_an_overflow_stays_visible_to_the_loss_scaler(overflown: int) -> None:
    leaf = torch.ones(2, requires_grad=True)
    copies = copies_of(leaf)
    (copies[overflown] * torch.tensor([float("inf"), 1.0]) + copies[1 - overflown]).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.isfinite().all()


def test_half_precision_gradients_keep_their_type_and_do_not_overflow() -> None:
    leaf = torch.ones(4096, dtype=torch.float16, requires_grad=True)
    one, two = copies_of(leaf)
    (3000 * one.float() + 1000 * two.float()).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float16
    assert leaf.grad.unique().tolist() == [6000]  # their norm is beyond float16


@pytest.mark.parametrize(("class_weight", "stays"), [(0.01, True), (0.3, False), (100.0, False)])
def test_a_limit_scales_down_and_never_up(class_weight: float, *, stays: bool) -> None:
    limited = torch.cat(fork_gradients(balance=0.5, scale=1.0, class_weight=class_weight, at_most=True))
    segmentation = torch.tensor([6.0, 8.0, 1.0]) / 7
    classification = class_weight * torch.tensor([1.0, 0.0, 5.0])
    if not stays:
        classification *= 0.5 * segmentation.norm() / classification.norm()
    torch.testing.assert_close(limited, segmentation + classification)


def test_a_map_that_only_one_of_them_reads_gets_its_gradient() -> None:
    leaves = tuple(torch.ones(2, requires_grad=True) for _ in range(3))
    (one, two, _), (_, four, five) = GradientFork(share=1.0)(leaves)
    (3 * one + 4 * two + four + five).sum().backward()
    found = [leaf.grad for leaf in leaves]
    size = (3**2 + 4**2) ** 0.5 / 2**0.5
    for gradient, expected in zip(found, (3.0, 4 + size, size), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full((2,), expected))


def test_without_a_gradient_the_maps_are_handed_on_as_they_are() -> None:
    leaf = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        segmentation, classification = GradientFork(share=1.0)((leaf,))
    assert segmentation[0] is classification[0] is leaf


def shared_gradient(plan: Plan, architecture: Architecture, class_weight: float) -> Tensor:
    """The gradient of encoder and decoder in one step; 0 leaves the class loss out."""
    torch.manual_seed(0)
    network = MultiTaskUNet(plan, architecture)
    output = network(torch.randn(2, 1, *plan.patch, generator=torch.Generator().manual_seed(1)))
    assert output.class_logits is not None
    loss = output.label_logits[0].square().mean()
    (loss + class_weight * output.class_logits.square().sum() if class_weight else loss).backward()
    return torch.cat(
        [
            torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
            for part in (network.encoder, network.decoder)
            for weight in part.parameters()
        ]
    )


@pytest.mark.parametrize(
    ("encoder", "branch"),
    [
        ("plain", "bottleneck"),
        ("attention_gated", "bottleneck"),
        ("attention_gated:balance=0.1", "bottleneck"),
        ("plain", "multi_scale:arms=decoder"),
        ("plain", "multi_scale:arms=both"),
    ],
)
def test_in_a_network_the_limit_holds_whatever_the_loss_weighs(
    make_plan: Callable[..., Plan], encoder: str, branch: str
) -> None:
    plan = make_plan()
    joined = f"{branch}{',' if ':' in branch else ':'}gradient_limit="
    limited, free = (Architecture(encoder=encoder, branch=f"{joined}{limit}") for limit in (0.1, 0))
    alone, *both = (shared_gradient(plan, limited, weight) for weight in (0.0, 1e4, 1e6))
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    assert 0 < (both[0] - alone).norm() < alone.norm()
    if ":" not in encoder:
        assert (shared_gradient(plan, free, 1e4) - alone).norm() > 10 * alone.norm()


def test_the_balance_of_an_encoder_takes_the_place_of_the_limit(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    balanced = Architecture(encoder="attention_gated:balance=0.5", branch="bottleneck:gradient_limit=0.001")
    alone, *both = (shared_gradient(plan, balanced, weight) for weight in (0.0, 1e-2, 1e4))
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-5)
    limited = Architecture(encoder="attention_gated", branch="bottleneck:gradient_limit=0.001")
    reach = (shared_gradient(plan, limited, 1e4) - alone).norm()
    assert (both[1] - alone).norm() > 100 * reach


def test_a_negative_limit_is_refused(make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(UserError, match="roi_pooled: gradient_limit should be at least 0, got -1"):
        MultiTaskUNet(make_plan(), Architecture(branch="roi_pooled:gradient_limit=-1"))
