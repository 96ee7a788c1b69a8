"""Learned task weights against the formula."""

import math

import pytest
import torch

from nnunet.losses.balancing import TaskBalance


def test_at_the_start_the_tasks_have_their_initial_weights() -> None:
    assert TaskBalance((1.0, 0.3)).weights().tolist() == pytest.approx([1.0, 0.3])


def test_the_sum_is_that_of_kendall() -> None:
    total = TaskBalance((2.0, 0.5))((torch.tensor(0.7), torch.tensor(1.1)))
    expected = 2 * 0.7 - math.log(2) / 2 + 0.5 * 1.1 - math.log(0.5) / 2
    assert total.item() == pytest.approx(expected)


def test_training_settles_at_one_over_twice_the_loss() -> None:
    balance = TaskBalance((1.0, 1.0))
    optimiser = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        balance((torch.tensor(0.25), torch.tensor(2.0))).backward()
        optimiser.step()
    assert balance.weights().tolist() == pytest.approx([2.0, 0.25], rel=1e-2)


def test_a_solved_task_does_not_gain_weight_without_end() -> None:
    balance = TaskBalance((1.0, 1.0))
    optimiser = torch.optim.SGD(balance.parameters(), lr=50.0)
    for _ in range(50):
        optimiser.zero_grad()
        balance((torch.tensor(0.0), torch.tensor(1.0))).backward()
        optimiser.step()
    assert balance.weights().isfinite().all()
    assert balance.weights().max() <= math.exp(4) * (1 + 1e-5)


def test_the_gradient_of_a_loss_is_its_weight() -> None:
    losses = [torch.tensor(value, requires_grad=True) for value in (0.4, 0.9)]
    TaskBalance((1.0, 0.3))(losses).backward()
    assert [loss.grad.item() for loss in losses if loss.grad is not None] == pytest.approx([1.0, 0.3])


def test_an_initial_weight_beyond_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="Initial weights should lie between"):
        TaskBalance((1.0, 0.0))
