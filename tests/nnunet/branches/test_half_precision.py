"""Every branch trains in bfloat16, from random weights and from given ones."""

from collections.abc import Callable

import pytest
import torch

from nnunet.branches import BRANCHES
from tests.training_steps import Device, assert_learned, make_steps, network_for
from utils.contracts import Plan

NAMES = [spec.name for spec in BRANCHES]


@pytest.mark.parametrize("encoder", ["plain", "attention_gated"])
@pytest.mark.parametrize("branch", NAMES)
def test_a_branch_learns_in_bfloat16(make_plan: Callable[..., Plan], branch: str, encoder: str) -> None:
    network = network_for(make_plan(), encoder, branch)
    assert_learned(make_steps(network, make_plan(), Device(name="cpu", half=torch.bfloat16)), network)


@pytest.mark.parametrize("branch", NAMES)
def test_a_branch_goes_on_from_given_weights(make_plan: Callable[..., Plan], branch: str) -> None:
    device = Device(name="cpu", half=torch.bfloat16)
    first, second = (network_for(make_plan(), "plain", branch) for _ in range(2))
    before = make_steps(first, make_plan(), device)
    second.load_state_dict(first.state_dict())
    assert sum(make_steps(second, make_plan(), device)[0]) < sum(before[0])
