"""Every branch on CUDA: float16 under a loss scale and bfloat16, plain, compiled, from given weights."""

from collections.abc import Callable

import pytest
import torch

from nnunet.branches import BRANCHES
from tests.training_steps import Device, assert_learned, make_steps, network_for
from utils.contracts import Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
NAMES = [spec.name for spec in BRANCHES]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("encoder", ["plain", "attention_gated", "attention_gated:balance=1"])
@pytest.mark.parametrize("branch", NAMES)
def test_a_branch_learns_in_half_precision(
    make_plan: Callable[..., Plan], branch: str, encoder: str, half: torch.dtype
) -> None:
    network = network_for(make_plan(), encoder, branch)
    assert_learned(make_steps(network, make_plan(), Device(name="cuda", half=half)), network)


# Each takes the compiler the better part of a minute.
@pytest.mark.parametrize(
    ("branch", "encoder", "half"),
    [
        ("roi_pooled", "plain", torch.float16),
        ("roi_pooled", "attention_gated:balance=1", torch.bfloat16),
        *((name, "plain", torch.bfloat16) for name in NAMES if name != "roi_pooled"),
    ],
)
def test_a_compiled_branch_learns_in_half_precision(
    make_plan: Callable[..., Plan], branch: str, encoder: str, half: torch.dtype
) -> None:
    network = network_for(make_plan(), encoder, branch)
    device = Device(name="cuda", half=half, backend="inductor")
    assert_learned(make_steps(network, make_plan(), device), network)


@pytest.mark.parametrize("branch", NAMES)
def test_a_branch_goes_on_from_given_weights(make_plan: Callable[..., Plan], branch: str) -> None:
    device = Device(name="cuda", half=torch.float16)
    first = network_for(make_plan(), "plain", branch)
    before = make_steps(first, make_plan(), device)
    second = network_for(make_plan(), "plain", branch)
    second.load_state_dict(first.state_dict())
    after = make_steps(second, make_plan(), device)
    assert sum(after[0]) < sum(before[0])
