"""Class losses against their formulas in NumPy."""

import numpy as np
import pytest
import torch

from nnunet.losses.classification import CLASS_LOSSES
from nnunet.options import LossOptions
from scripts.flag_table import option_texts
from utils.contracts import NO_CLASS
from utils.errors import UserError
from utils.registry import UnknownPartError

COUNTS = (62, 106, 84)
LOGITS = np.random.default_rng(0).normal(size=(5, 3)) * 2
TARGET = np.array([0, 1, 2, 0, 1])
ROWS = np.arange(len(TARGET))
CHOICES = ("cross_entropy", "cross_entropy:smoothing=0.1", "focal", "ldam", "logit_adjusted")


def losses_of(choice: str, *, counts: tuple[int, ...] = COUNTS, progress: float = 0.0) -> np.ndarray:
    loss = CLASS_LOSSES.build(choice).build(counts)
    return loss(torch.from_numpy(LOGITS), torch.from_numpy(TARGET), progress).numpy()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def inverse_weights() -> np.ndarray:
    return sum(COUNTS) / (len(COUNTS) * np.array(COUNTS))


def effective_weights(beta: float = 0.9999) -> np.ndarray:
    raw = (1 - beta) / (1 - beta ** np.array(COUNTS, dtype=float))
    return raw * sum(COUNTS) / (raw * np.array(COUNTS)).sum()


def test_cross_entropy_is_the_negative_log_probability_times_the_inverse_frequency() -> None:
    expected = -log_probabilities(LOGITS)[ROWS, TARGET] * inverse_weights()[TARGET]
    np.testing.assert_allclose(losses_of("cross_entropy"), expected, rtol=1e-5)


def test_the_published_inverse_weights() -> None:
    weights = CLASS_LOSSES.build("cross_entropy").class_weights(COUNTS)
    assert weights == pytest.approx((1.3548, 0.7925, 1.0), abs=5e-5)


def test_effective_weights_follow_cui() -> None:
    weights = CLASS_LOSSES.build("focal:weights=effective,beta=0.99").class_weights(COUNTS)
    np.testing.assert_allclose(weights, effective_weights(0.99))


def test_without_weights_classes_count_alike() -> None:
    expected = -log_probabilities(LOGITS)[ROWS, TARGET]
    np.testing.assert_allclose(losses_of("cross_entropy:weights=none"), expected, rtol=1e-5)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    soft = np.full((5, 3), 0.1 / 3)
    soft[ROWS, TARGET] += 0.9
    expected = -(soft * log_probabilities(LOGITS)).sum(axis=1)
    found = losses_of("cross_entropy:smoothing=0.1,weights=none")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_modulates_each_case_by_its_own_probability(gamma: float) -> None:
    log_p = log_probabilities(LOGITS)[ROWS, TARGET]
    expected = -((1 - np.exp(log_p)) ** gamma) * log_p
    np.testing.assert_allclose(losses_of(f"focal:gamma={gamma},weights=none"), expected, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_a_finite_gradient_for_a_certain_case(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    CLASS_LOSSES.build(f"focal:gamma={gamma}").build(COUNTS)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_logits_are_adjusted_by_the_log_of_the_class_share() -> None:
    shifted = LOGITS + 0.7 * np.log(np.array(COUNTS) / sum(COUNTS))
    expected = -log_probabilities(shifted)[ROWS, TARGET]
    np.testing.assert_allclose(losses_of("logit_adjusted:tau=0.7"), expected, rtol=1e-5)


def test_the_margin_of_the_rarest_class_is_the_largest() -> None:
    margins = 0.5 * np.array(COUNTS, dtype=float) ** -0.25 / min(COUNTS) ** -0.25
    shifted = LOGITS.copy()
    shifted[ROWS, TARGET] -= margins[TARGET]
    expected = -log_probabilities(30 * shifted)[ROWS, TARGET]
    np.testing.assert_allclose(losses_of("ldam:max_margin=0.5,scale=30"), expected, rtol=1e-4, atol=1e-6)


def test_ldam_weighs_classes_only_late_in_training() -> None:
    early, late = (losses_of("ldam:drw_start=0.8", progress=at) for at in (0.79, 0.8))
    np.testing.assert_allclose(late, early * effective_weights()[TARGET], rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_an_unknown_class_costs_nothing_and_moves_nothing(choice: str) -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = CLASS_LOSSES.build(choice).build(COUNTS)(logits, torch.tensor([NO_CLASS, 1]))
    losses.sum().backward()
    assert logits.grad is not None
    assert losses[0] == 0
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (1, 9, 0, 2, 4)])
def test_absent_classes_leave_every_loss_finite(choice: str, counts: tuple[int, ...]) -> None:
    loss = CLASS_LOSSES.build(choice).build(counts)
    targets = torch.arange(len(counts))
    assert loss(torch.randn(len(counts), len(counts)), targets, 1.0).isfinite().all()


@pytest.mark.parametrize("choice", CHOICES)
def test_half_precision_logits_give_single_precision_losses(choice: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = CLASS_LOSSES.build(choice).build(COUNTS)(torch.randn(2, 3).bfloat16(), torch.tensor([0, 2]))
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("choice", CHOICES)
def test_nothing_of_a_loss_goes_into_a_checkpoint(choice: str) -> None:
    assert CLASS_LOSSES.build(choice).build(COUNTS).state_dict() == {}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("cross_entropy:smoothing=2", "smoothing should lie between 0 and 1, got 2"),
        ("cross_entropy:weights=equal", "weights should be one of none, inverse, effective, got 'equal'"),
        ("cross_entropy:beta=1", "beta should be at least 0 and below 1"),
        ("focal:gamma=-1", "gamma should be at least 0, got -1"),
        ("logit_adjusted:tau=nan", "tau should be at least 0, got nan"),
        ("ldam:drw_start=8", "drw_start should lie between 0 and 1, got 8"),
        ("ldam:scale=0", "scale above 0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CLASS_LOSSES.build(choice).build(COUNTS)


def test_an_unknown_loss_is_refused_with_the_choices() -> None:
    with pytest.raises(UnknownPartError, match="No class loss is called 'hinge'"):
        CLASS_LOSSES.build("hinge")


def test_the_help_of_class_balance_names_the_weighting_of_every_loss() -> None:
    text = option_texts(LossOptions)["class_balance"]
    words = {"inverse": "by the inverse of its", "effective": "effective number", "none": "not at all"}
    for choice in ("cross_entropy", "focal", "ldam", "logit_adjusted"):
        behind = text.partition(choice)[2]
        told = min(words, key=lambda name: behind.find(words[name]) % len(text))
        assert told == CLASS_LOSSES.build(choice).weights
