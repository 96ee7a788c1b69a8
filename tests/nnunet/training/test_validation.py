"""Scores of a validation epoch, by pencil."""

import math
from collections.abc import Callable

import pytest
import torch

from nnunet.inference.sliding_window import VolumeOutput
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.training.validation import CaseResult, ValidationScores, case_result, dice_of, pool_results
from utils.contracts import NO_CLASS, Batch, Plan

NAN = float("nan")


def result(
    name: str,
    dice: tuple[float, ...],
    *,
    target: int = NO_CLASS,
    probs: tuple[float, ...] = (),
    loss: float = 0.0,
) -> CaseResult:
    return CaseResult(case_id=name, dice=dice, loss=loss, class_target=target, class_probs=probs)


def test_dice_of_two_of_three_against_two_of_four_voxels() -> None:
    predicted = torch.tensor([1, 1, 1, 0, 0]).view(1, 1, 5)
    truth = torch.tensor([1, 1, 0, 1, 1]).view(1, 1, 5)
    assert dice_of(predicted, truth, 2).tolist() == pytest.approx([4 / 7])


def test_a_label_that_both_lack_is_nan_and_one_that_is_missed_or_invented_is_zero() -> None:
    predicted = torch.tensor([0, 0, 3, 1]).view(1, 1, 4)
    truth = torch.tensor([0, 2, 0, 1]).view(1, 1, 4)
    first, missed, invented, absent = dice_of(predicted, truth, 5).tolist()
    assert (first, missed, invented) == (1, 0, 0)
    assert math.isnan(absent)


def test_a_nan_leaves_its_case_out_of_the_mean(make_plan: Callable[..., Plan]) -> None:
    scores = ValidationScores.from_results([result("a", (0.8, NAN)), result("b", (0.4, 0.3))], make_plan())
    assert scores.dice == pytest.approx((0.6, 0.3))
    assert scores.metrics()["val/dsc"] == pytest.approx(0.45)


def test_a_label_that_no_case_has_leaves_the_overall_mean(make_plan: Callable[..., Plan]) -> None:
    scores = ValidationScores.from_results([result("a", (0.8, NAN))], make_plan())
    assert math.isnan(scores.metrics()["val/dsc_2"])
    assert scores.metrics()["val/dsc"] == pytest.approx(0.8)


def test_the_overall_mean_is_a_number_whatever_happens(make_plan: Callable[..., Plan]) -> None:
    scores = ValidationScores.from_results([result("a", (NAN, NAN))], make_plan())
    assert scores.metrics()["val/dsc"] == 0


def test_macro_f1_is_pooled_over_the_cases_and_stands_beside_the_best_constant(
    make_plan: Callable[..., Plan],
) -> None:
    results = [
        result("a", (1.0, 1.0), target=0, probs=(0.9, 0.1)),
        result("b", (1.0, 1.0), target=0, probs=(0.2, 0.8)),
        result("c", (1.0, 1.0), target=1, probs=(0.4, 0.6)),
        result("d", (1.0, 1.0), probs=(0.4, 0.6)),
    ]
    scores = ValidationScores.from_results(results, make_plan())
    assert scores.macro_f1 == pytest.approx(2 / 3)
    assert scores.constant_macro_f1 == pytest.approx((0.8 + 0) / 2)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_without_known_classes_there_is_no_macro_f1(make_plan: Callable[..., Plan], num_classes: int) -> None:
    scores = ValidationScores.from_results([result("a", (1.0, 1.0))], make_plan(num_classes=num_classes))
    assert scores.macro_f1 is None
    assert not [name for name in scores.metrics() if "macro" in name]


def test_losses_are_averaged(make_plan: Callable[..., Plan]) -> None:
    scores = ValidationScores.from_results(
        [result("a", (1.0,), loss=1), result("b", (1.0,), loss=4)], make_plan()
    )
    assert scores.loss == 2.5


def test_each_case_counts_once_in_the_order_of_names() -> None:
    pooled = pool_results([result("b", (1.0,)), result("a", (0.5,)), result("b", (1.0,))])
    assert [item.case_id for item in pooled] == ["a", "b"]


def test_a_volume_is_scored_against_its_batch() -> None:
    label = torch.tensor([0, 1, 2, 2], dtype=torch.int16).view(1, 1, 1, 1, 4)
    logits = 50.0 * (label[0] == torch.arange(3).view(3, 1, 1, 1)).float()
    batch = Batch(
        image=torch.zeros(1, 1, 1, 1, 4),
        label=(label,),
        class_target=torch.tensor([1]),
        case_weights=None,
        case_ids=("a",),
    )
    loss = MultiTaskLoss(
        (1.0, 1.0), class_loss_weight=0.5, lesion_free_weight=1.0, batch_dice=False, lesion_label=2
    )
    output = VolumeOutput(label_logits=logits, class_probs=torch.tensor([0.75, 0.25]))
    scored = case_result(output, batch, loss)
    assert (scored.case_id, scored.dice, scored.class_target) == ("a", (1.0, 1.0), 1)
    assert scored.class_probs == (0.75, 0.25)
    assert scored.loss == pytest.approx(-1 + 0.5 * math.log(4))
