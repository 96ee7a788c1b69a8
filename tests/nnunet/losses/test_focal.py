"""The focal factor, against the formula of its paper."""

import math

import numpy as np
import pytest
import torch

from nnunet.label_coding import LabelCoding
from nnunet.losses.cross_entropy import voxel_cross_entropy
from nnunet.losses.focal import FOCAL_GAMMA, focused

REGIONS = LabelCoding(num_labels=3, regions=((1, 2), (2,)))
ONE = torch.ones(1)


def random_case(channels: int) -> torch.Tensor:
    return torch.randn(1, channels, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_a_voxel_of_probability_three_quarters_weighs_a_sixteenth() -> None:
    assert focused(torch.tensor(-math.log(0.75)), FOCAL_GAMMA).item() == pytest.approx(
        0.25**2 * -math.log(0.75)
    )


def test_the_softmax_form_is_that_of_the_paper() -> None:
    logits = random_case(3)
    label = torch.randint(0, 3, (1, 1, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    exponential = np.exp(logits.double().numpy()[0])
    probabilities = exponential / exponential.sum(axis=0)
    of_truth = np.take_along_axis(probabilities, label.numpy()[0], axis=0)
    expected = (-((1 - of_truth) ** 2) * np.log(of_truth)).mean()
    assert voxel_cross_entropy(logits, label, ONE, gamma=2).item() == pytest.approx(expected)


def test_the_sigmoid_form_is_that_of_the_paper() -> None:
    logits = random_case(2)
    target = (random_case(2).flip(2) > 0).to(torch.uint8)
    probabilities = 1 / (1 + np.exp(-logits.double().numpy()))
    of_truth = np.where(target.numpy() > 0, probabilities, 1 - probabilities)
    expected = (-((1 - of_truth) ** 2) * np.log(of_truth)).mean()
    loss = voxel_cross_entropy(logits, target, ONE, coding=REGIONS, gamma=2)
    assert loss.item() == pytest.approx(expected)


def test_gamma_zero_is_the_cross_entropy_of_torch() -> None:
    logits = random_case(3)
    label = torch.randint(0, 3, (1, 1, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(logits, label[:, 0])
    assert voxel_cross_entropy(logits, label, ONE, gamma=0).item() == pytest.approx(expected.item())
    assert focused(expected, 0.0) is expected


def test_a_certain_voxel_has_a_finite_gradient() -> None:
    logits = torch.tensor([80.0, -80.0]).view(1, 2, 1, 1, 1).requires_grad_()
    for label in (0, 1):
        loss = voxel_cross_entropy(logits, torch.full((1, 1, 1, 1, 1), label), ONE, gamma=FOCAL_GAMMA)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
