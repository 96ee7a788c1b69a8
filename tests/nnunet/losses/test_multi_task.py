"""Both losses together."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nnunet.label_coding import LabelCoding
from nnunet.losses.balancing import TaskBalance
from nnunet.losses.base import CaseLoss
from nnunet.losses.classification import CrossEntropy, Ldam
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from utils.contracts import NO_CLASS, Batch, ModelOutput

PLAIN = CrossEntropy(weights="none").build((1, 1))


def make_loss(*, class_loss: CaseLoss = PLAIN, lesion_free_weight: float = 0.25) -> MultiTaskLoss:
    return MultiTaskLoss(
        class_loss,
        SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
        class_loss_weight=0.3,
        lesion_free_weight=lesion_free_weight,
    )


def label_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int16).view(1, 1, 1, 1, -1)


def batch_of(*labels: Tensor, targets: tuple[int, ...], weights: tuple[float, ...] | None = None) -> Batch:
    label = torch.cat(labels)
    return Batch(
        image=torch.zeros(len(targets), 1, *label.shape[2:]),
        label=(label,),
        class_target=torch.tensor(targets),
        case_weights=None if weights is None else torch.tensor(weights),
        case_ids=tuple(f"case_{index}" for index in range(len(targets))),
        num_counted=len(targets) if weights is None else sum(weight > 0 for weight in weights),
    )


def sure(label: Tensor) -> Tensor:
    return 50.0 * (label == torch.arange(3).view(1, 3, 1, 1, 1)).float()


LESION, NO_LESION = label_of(0, 1, 2, 2), label_of(0, 1, 1, 0)


def test_a_perfect_answer_costs_minus_one() -> None:
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.tensor([[50.0, 0.0]]))
    terms = make_loss()(output, batch_of(LESION, targets=(0,)))
    assert terms.total.item() == pytest.approx(-1)
    assert terms.segmentation.item() == pytest.approx(-1)
    assert terms.classification.item() == pytest.approx(0)


def test_the_class_loss_is_added_with_its_weight() -> None:
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.zeros(1, 2))
    terms = make_loss()(output, batch_of(LESION, targets=(0,)))
    assert terms.total.item() == pytest.approx(-1 + 0.3 * math.log(2))


def test_a_patch_without_lesion_says_less_about_the_class() -> None:
    output = ModelOutput(label_logits=(sure(NO_LESION),), class_logits=torch.zeros(1, 2))
    terms = make_loss(lesion_free_weight=0.25)(output, batch_of(NO_LESION, targets=(1,)))
    assert terms.classification.item() == pytest.approx(0.25 * math.log(2))


def test_a_patch_without_lesion_is_ignored_at_weight_zero() -> None:
    output = ModelOutput(label_logits=(sure(NO_LESION),), class_logits=torch.zeros(1, 2))
    terms = make_loss(lesion_free_weight=0.0)(output, batch_of(NO_LESION, targets=(1,)))
    assert terms.classification.item() == 0


def test_class_weights_reach_the_class_loss() -> None:
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.zeros(1, 2))
    rare = CrossEntropy().build((3, 1))
    terms = make_loss(class_loss=rare)(output, batch_of(LESION, targets=(1,)))
    assert terms.classification.item() == pytest.approx(2 * math.log(2))


def test_the_progress_of_the_training_reaches_the_class_loss() -> None:
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.zeros(1, 2))
    loss = make_loss(class_loss=Ldam(weights="inverse", max_margin=0.0, drw_start=0.5).build((3, 1)))
    for progress, weight in ((0.4, 1), (0.6, 2)):
        loss.progress = progress
        terms = loss(output, batch_of(LESION, targets=(1,)))
        assert terms.classification.item() == pytest.approx(weight * math.log(2))


def test_cases_of_known_class_are_averaged() -> None:
    class_logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [7.0, -7.0]])
    output = ModelOutput(label_logits=(sure(torch.cat([LESION] * 3)),), class_logits=class_logits)
    terms = make_loss()(output, batch_of(LESION, LESION, LESION, targets=(0, 1, NO_CLASS)))
    assert terms.classification.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_a_lighter_patch_counts_less_but_is_counted() -> None:
    output = ModelOutput(label_logits=(sure(torch.cat([LESION, NO_LESION])),), class_logits=torch.zeros(2, 2))
    terms = make_loss(lesion_free_weight=0.2)(output, batch_of(LESION, NO_LESION, targets=(0, 1)))
    assert terms.classification.item() == pytest.approx(math.log(2) * (1 + 0.2) / 2)


@pytest.mark.parametrize("class_logits", [None, torch.zeros(1, 2)])
def test_without_class_only_the_segmentation_counts(class_logits: Tensor | None) -> None:
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=class_logits)
    terms = make_loss()(output, batch_of(LESION, targets=(NO_CLASS,)))
    assert terms.total.item() == pytest.approx(terms.segmentation.item())


def test_lower_resolutions_share_two_to_one() -> None:
    wrong = label_of(1, 2, 0, 0)
    output = ModelOutput(label_logits=(sure(LESION), sure(wrong)[..., ::2]))
    batch = batch_of(LESION, targets=(NO_CLASS,))
    batch = replace(batch, label=(LESION, LESION[..., ::2]))
    alone = ModelOutput(label_logits=(sure(wrong)[..., ::2],))
    lower = make_loss()(alone, replace(batch, label=(LESION[..., ::2],))).total
    assert make_loss()(output, batch).total.item() == pytest.approx((2 * -1 + lower.item()) / 3)


def test_a_padded_copy_has_no_influence_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    label_logits = torch.randn(2, 3, 1, 1, 4, generator=generator).requires_grad_()
    class_logits = torch.randn(2, 2, generator=generator).requires_grad_()
    alone = make_loss()(
        ModelOutput(label_logits=(label_logits[:1],), class_logits=class_logits[:1]),
        batch_of(LESION, targets=(1,)),
    )
    padded = make_loss()(
        ModelOutput(label_logits=(label_logits,), class_logits=class_logits),
        batch_of(LESION, NO_LESION, targets=(1, 0), weights=(1.0, 0.0)),
    )
    padded.total.backward()
    assert padded.total.item() == pytest.approx(alone.total.item())
    assert label_logits.grad is not None
    assert class_logits.grad is not None
    assert not label_logits.grad[1].any()
    assert not class_logits.grad[1].any()


def test_the_parts_carry_no_graph() -> None:
    output = ModelOutput(label_logits=(sure(LESION).requires_grad_(),), class_logits=torch.zeros(1, 2))
    terms = make_loss()(output, batch_of(LESION, targets=(0,)))
    assert terms.total.requires_grad
    assert not terms.segmentation.requires_grad
    assert not terms.classification.requires_grad


def test_a_region_may_show_the_lesion() -> None:
    coding = LabelCoding(num_labels=3, regions=((1, 2), (2,)))
    loss = MultiTaskLoss(
        PLAIN,
        SegmentationLoss(coding=coding, batch_dice=False),
        class_loss_weight=1.0,
        lesion_free_weight=0.25,
    )
    output = ModelOutput(label_logits=(torch.zeros(1, 2, 1, 1, 2),), class_logits=torch.zeros(1, 2))
    shown = torch.tensor([[1, 1], [0, 1]], dtype=torch.uint8).view(1, 2, 1, 1, 2)
    batch = batch_of(NO_LESION, targets=(1,))
    with_lesion, without = (
        loss(output, replace(batch, label=(target,))).classification.item()
        for target in (shown, shown * torch.tensor([1, 0], dtype=torch.uint8).view(1, 2, 1, 1, 1))
    )
    assert with_lesion == pytest.approx(math.log(2))
    assert without == pytest.approx(0.25 * math.log(2))


def test_a_patch_that_nobody_annotated_counts_like_a_case_without_a_mask() -> None:
    loss = MultiTaskLoss(
        PLAIN,
        SegmentationLoss(coding=LabelCoding(num_labels=3, ignore_label=3), batch_dice=False),
        class_loss_weight=1.0,
        lesion_free_weight=0.25,
    )
    output = ModelOutput(label_logits=(torch.zeros(1, 3, 1, 1, 4),), class_logits=torch.zeros(1, 2))
    nobody, somebody = label_of(3, 3, 3, 3), label_of(3, 0, 1, 3)
    terms = loss(output, batch_of(nobody, targets=(1,)))
    assert terms.classification.item() == pytest.approx(math.log(2))
    assert terms.segmentation.item() == 0
    assert loss(output, batch_of(somebody, targets=(1,))).classification.item() == pytest.approx(
        0.25 * math.log(2)
    )


# --- which task learns, and by which weight -------------------------------------------------------------


def other_loss(*, segmentation_learns: bool = True, balance: TaskBalance | None = None) -> MultiTaskLoss:
    return MultiTaskLoss(
        PLAIN,
        SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
        class_loss_weight=0.3,
        lesion_free_weight=0.25,
        segmentation_learns=segmentation_learns,
        balance=balance,
    )


def test_where_the_segmentation_does_not_learn_its_loss_is_not_computed() -> None:
    label_logits = sure(LESION).requires_grad_()
    output = ModelOutput(label_logits=(label_logits * torch.nan,), class_logits=torch.zeros(1, 2))
    terms = other_loss(segmentation_learns=False)(output, batch_of(LESION, targets=(0,)))
    assert terms.segmentation.item() == 0
    assert terms.total.item() == pytest.approx(0.3 * math.log(2))
    assert not terms.total.requires_grad


def test_learned_weights_see_a_segmentation_loss_that_is_never_negative() -> None:
    loss = other_loss(balance=TaskBalance((1.0, 0.5)))
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.zeros(1, 2))
    terms = loss(output, batch_of(LESION, targets=(0,)))
    # exp(-s) is the weight, s / 2 is added for each task; a perfect segmentation costs -1.
    assert terms.total.item() == pytest.approx((-1 + 1) * 1.0 + 0.5 * math.log(2) - math.log(0.5) / 2)


def test_a_step_raises_the_weight_of_a_task_whose_loss_is_small() -> None:
    balance = TaskBalance((1.0, 0.3))
    output = ModelOutput(label_logits=(sure(LESION),), class_logits=torch.tensor([[50.0, 0.0]]))
    loss = other_loss(balance=balance)
    before = {name: float(weight) for name, weight in loss.task_weights().items()}
    loss(output, batch_of(LESION, targets=(0,))).total.backward()
    torch.optim.SGD(balance.parameters(), lr=0.1).step()
    after = {name: float(weight) for name, weight in loss.task_weights().items()}
    assert before == pytest.approx({"segmentation": 1.0, "class": 0.3})
    assert all(after[name] > before[name] for name in before)


def test_fixed_weights_are_not_reported() -> None:
    assert make_loss().task_weights() == {}
