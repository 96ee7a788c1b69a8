"""Scores of a validation epoch, by pencil."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from nnunet.inference.sliding_window import VolumeOutput
from nnunet.label_coding import LabelCoding
from nnunet.losses.classification import CrossEntropy
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.training import module as module_of_training
from nnunet.training.validation import CaseResult, ValidationScores, case_result, dice_of, pool_results
from utils.contracts import NO_CLASS, Batch, Plan

if TYPE_CHECKING:
    from tests.nnunet.training.conftest import TinyRun

NAN = float("nan")
MASK_LOSS = MultiTaskLoss(
    CrossEntropy(weights="none").build((1, 1)),
    SegmentationLoss(coding=LabelCoding(num_labels=3), batch_dice=False),
    class_loss_weight=0.5,
    lesion_free_weight=1.0,
)


def result(
    name: str,
    dice: tuple[float, ...],
    *,
    target: int = NO_CLASS,
    probs: tuple[float, ...] = (),
    loss: float | None = 0.0,
    class_loss: float | None = None,
) -> CaseResult:
    return CaseResult(
        case_id=name,
        dice=dice,
        has_foreground=not all(math.isnan(value) for value in dice),
        segmentation_loss=loss,
        class_loss=class_loss,
        class_target=target,
        class_probs=probs,
    )


def scores_of(*results: CaseResult, plan: Plan) -> ValidationScores:
    return ValidationScores.from_results(results, plan, class_loss_weight=0.5)


def row(*values: int) -> Tensor:
    """A target of one row of voxels."""
    return torch.tensor(values, dtype=torch.int16).view(1, 1, 1, 1, -1)


def sure(labels: tuple[int, ...], num_labels: int) -> Tensor:
    """Logits (1, L, 1, 1, W) that are certain of `labels`."""
    return 50.0 * (row(*labels) == torch.arange(num_labels).view(1, -1, 1, 1, 1)).float()


def volume_batch(*, target: int, has_mask: bool = True) -> Batch:
    label = torch.tensor([0, 1, 2, 2], dtype=torch.int16).view(1, 1, 1, 1, 4)
    return Batch(
        image=torch.zeros(1, 1, 1, 1, 4),
        label=(label * has_mask,),
        class_target=torch.tensor([target]),
        case_weights=torch.ones(1),
        mask_weights=torch.tensor([float(has_mask)]),
        case_ids=("a",),
        num_counted=1,
    )


def score_of(batch: Batch) -> CaseResult:
    """The score of a volume segmented as `volume_batch` was drawn, its class 0 with probability 3/4."""
    truth = torch.tensor([0, 1, 2, 2]).view(1, 1, 1, 4)
    logits = 50.0 * (truth == torch.arange(3).view(3, 1, 1, 1)).float()
    output = VolumeOutput(label_logits=logits, class_probs=torch.tensor([0.75, 0.25]))
    return case_result(output, batch, MASK_LOSS)


def test_dice_of_two_of_three_against_two_of_four_voxels() -> None:
    assert dice_of(sure((1, 1, 1, 0, 0), 2), row(1, 1, 0, 1, 1), LabelCoding(num_labels=2)).tolist() == (
        pytest.approx([4 / 7])
    )


def test_a_label_that_both_lack_is_nan_and_one_that_is_missed_or_invented_is_zero() -> None:
    dice = dice_of(sure((0, 0, 3, 1), 5), row(0, 2, 0, 1), LabelCoding(num_labels=5))
    first, missed, invented, absent = dice.tolist()
    assert (first, missed, invented) == (1, 0, 0)
    assert math.isnan(absent)


def test_a_nan_leaves_its_case_out_of_the_mean(make_plan: Callable[..., Plan]) -> None:
    scores = scores_of(result("a", (0.8, NAN)), result("b", (0.4, 0.3)), plan=make_plan())
    assert scores.dice == pytest.approx((0.6, 0.3))
    assert scores.metrics()["val/dsc"] == pytest.approx(0.45)


def test_a_label_that_no_case_has_leaves_the_overall_mean(make_plan: Callable[..., Plan]) -> None:
    scores = scores_of(result("a", (0.8, NAN)), plan=make_plan())
    assert math.isnan(scores.metrics()["val/dsc_2"])
    assert scores.metrics()["val/dsc"] == pytest.approx(0.8)


def test_the_best_epoch_is_chosen_by_dice_where_a_mask_shows_a_label(make_plan: Callable[..., Plan]) -> None:
    metrics = scores_of(result("a", (0.8, 0.4), target=0, probs=(0.9, 0.1)), plan=make_plan()).metrics()
    assert metrics["val/score"] == metrics["val/dsc"] == pytest.approx(0.6)


def test_without_masks_it_is_chosen_by_macro_f1(make_plan: Callable[..., Plan]) -> None:
    one, other = (
        result(name, (NAN, NAN), loss=None, class_loss=3.0, target=target, probs=(0.9, 0.1))
        for name, target in (("a", 0), ("b", 1))
    )
    metrics = scores_of(one, other, plan=make_plan()).metrics()
    assert metrics["val/score"] == metrics["val/macro_f1"] == pytest.approx(1 / 3)
    assert "val/dsc" not in metrics


def test_without_masks_and_classes_it_is_chosen_by_the_loss(make_plan: Callable[..., Plan]) -> None:
    metrics = scores_of(result("a", (NAN, NAN), loss=1.5), plan=make_plan()).metrics()
    assert (metrics["val/score"], metrics["val/loss"]) == (-1.5, 1.5)


def test_dice_does_not_choose_where_all_masks_are_empty(make_plan: Callable[..., Plan]) -> None:
    # A voxel invented in one epoch and not in the next would change what the score is.
    invented = replace(result("a", (0.0, NAN), loss=1.5), has_foreground=False)
    metrics = scores_of(invented, plan=make_plan()).metrics()
    assert metrics["val/score"] == -1.5
    assert "val/dsc" not in metrics


def test_macro_f1_is_pooled_over_the_cases_and_stands_beside_the_best_constant(
    make_plan: Callable[..., Plan],
) -> None:
    results = [
        result("a", (1.0, 1.0), target=0, probs=(0.9, 0.1)),
        result("b", (1.0, 1.0), target=0, probs=(0.2, 0.8)),
        result("c", (1.0, 1.0), target=1, probs=(0.4, 0.6)),
        result("d", (1.0, 1.0), probs=(0.4, 0.6)),
    ]
    scores = scores_of(*results, plan=make_plan())
    assert scores.macro_f1 == pytest.approx(2 / 3)
    assert scores.constant_macro_f1 == pytest.approx((0.8 + 0) / 2)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_without_known_classes_there_is_no_macro_f1(make_plan: Callable[..., Plan], num_classes: int) -> None:
    scores = scores_of(result("a", (1.0, 1.0)), plan=make_plan(num_classes=num_classes))
    assert scores.macro_f1 is None
    assert not [name for name in scores.metrics() if "macro" in name]


def test_losses_are_averaged(make_plan: Callable[..., Plan]) -> None:
    scores = scores_of(result("a", (1.0,), loss=1), result("b", (1.0,), loss=4), plan=make_plan())
    assert scores.loss == 2.5


def test_each_loss_is_averaged_over_the_cases_that_have_it(make_plan: Callable[..., Plan]) -> None:
    results = [
        result("both", (1.0,), loss=-0.5, class_loss=1.0),
        result("only_mask", (1.0,), loss=-1.0),
        result("only_class", (NAN,), loss=None, class_loss=3.0),
        result("neither", (NAN,), loss=None),
    ]
    assert scores_of(*results, plan=make_plan()).loss == -0.75 + 0.5 * 2.0


def test_each_case_counts_once_in_the_order_of_names() -> None:
    pooled = pool_results([result("b", (1.0,)), result("a", (0.5,)), result("b", (1.0,))])
    assert [item.case_id for item in pooled] == ["a", "b"]


def test_a_volume_is_scored_against_its_batch() -> None:
    scored = score_of(volume_batch(target=1))
    assert (scored.case_id, scored.dice, scored.class_target) == ("a", (1.0, 1.0), 1)
    assert scored.class_probs == (0.75, 0.25)
    assert scored.has_foreground
    assert scored.segmentation_loss == pytest.approx(-1)
    assert scored.class_loss == pytest.approx(math.log(4))


def test_a_case_without_a_class_has_no_class_loss() -> None:
    scored = score_of(volume_batch(target=NO_CLASS))
    assert scored.class_loss is None
    assert scored.segmentation_loss == pytest.approx(-1)


def test_a_case_without_a_mask_has_neither_dice_nor_segmentation_loss() -> None:
    scored = score_of(volume_batch(target=1, has_mask=False))
    assert all(math.isnan(value) for value in scored.dice)
    assert scored.segmentation_loss is None
    assert not scored.has_foreground
    assert scored.class_loss == pytest.approx(math.log(4))


# --- numbers that are none ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [NAN, math.inf])
def test_a_loss_that_is_not_finite_is_seen_and_never_the_best(
    make_plan: Callable[..., Plan], loss: float
) -> None:
    metrics = scores_of(
        result("a", (0.8, 0.4), loss=loss), result("b", (0.8, 0.4)), plan=make_plan()
    ).metrics()
    assert not math.isfinite(metrics["val/loss"])
    assert metrics["val/score"] == -math.inf


@pytest.mark.parametrize("has_mask", [False, True])
def test_an_output_that_is_not_finite_is_seen_and_never_the_best(
    make_plan: Callable[..., Plan], *, has_mask: bool
) -> None:
    output = VolumeOutput(label_logits=torch.full((3, 1, 1, 4), NAN), class_probs=torch.tensor([NAN, NAN]))
    scored = case_result(output, volume_batch(target=1, has_mask=has_mask), MASK_LOSS)
    assert not scored.is_finite
    scores = scores_of(scored, result("b", (0.8, 0.4), target=0, probs=(0.9, 0.1)), plan=make_plan())
    assert math.isnan(scores.loss)
    assert scores.metrics()["val/score"] == -math.inf
    assert not scores.collapse


def test_an_infinite_output_for_a_case_of_which_nothing_is_known_is_never_the_best(
    make_plan: Callable[..., Plan],
) -> None:
    output = VolumeOutput(label_logits=torch.full((3, 1, 1, 4), math.inf), class_probs=None)
    scored = case_result(output, volume_batch(target=NO_CLASS, has_mask=False), MASK_LOSS)
    metrics = scores_of(scored, result("b", (0.8, 0.4)), plan=make_plan()).metrics()
    assert (metrics["val/loss"], metrics["val/score"]) == (0.0, -math.inf)


# --- regions, ignored voxels, the original grid ---------------------------------------------------------

REGIONS = LabelCoding(num_labels=3, regions=((1, 2), (2,)), ignore_label=3)


def region_target(*voxels: tuple[int, int, int]) -> Tensor:
    """(1, 3, 1, 1, W) from (in region 0, in region 1, ignored) of each voxel."""
    return torch.tensor(voxels, dtype=torch.uint8).T.reshape(1, 3, 1, 1, -1)


def region_logits(*voxels: tuple[float, float]) -> Tensor:
    return torch.tensor(voxels).T.reshape(1, 2, 1, 1, -1)


def test_dice_of_regions_that_overlap_is_taken_for_each_by_itself() -> None:
    logits = region_logits((3.0, 2.0), (1.0, -1.0), (-1.0, -2.0), (0.5, 0.5))
    target = region_target((1, 1, 0), (1, 0, 0), (1, 0, 0), (0, 0, 0))
    assert dice_of(logits, target, REGIONS).tolist() == pytest.approx([2 * 2 / (3 + 3), 2 * 1 / (2 + 1)])


def test_ignored_voxels_have_no_part_in_dice() -> None:
    logits = region_logits((3.0, 3.0), (9.0, 9.0), (-9.0, 9.0))
    target = region_target((1, 0, 0), (0, 0, 1), (0, 0, 1))
    assert dice_of(logits, target, REGIONS).tolist() == [1, 0]
    labels = LabelCoding(num_labels=3, ignore_label=3)
    first, second = dice_of(sure((1, 1, 2), 3), row(1, 3, 3), labels).tolist()
    assert first == 1
    assert math.isnan(second)


def region_batch(target: Tensor) -> Batch:
    return replace(volume_batch(target=0), label=(target,))


REGION_LOSS = MultiTaskLoss(
    CrossEntropy(weights="none").build((1, 1)),
    SegmentationLoss(coding=REGIONS, batch_dice=False),
    class_loss_weight=0.5,
    lesion_free_weight=1.0,
)


def test_a_volume_with_regions_is_scored_against_its_batch() -> None:
    target = region_target((1, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0, 1))
    output = VolumeOutput(label_logits=100 * (target[0, :2].float() - 0.5), class_probs=None)
    scored = case_result(output, region_batch(target), REGION_LOSS)
    assert scored.dice == (1.0, 1.0)
    assert scored.has_foreground
    assert scored.segmentation_loss == pytest.approx(-1)


def test_a_volume_of_which_all_is_ignored_has_no_score() -> None:
    target = region_target(*[(0, 0, 1)] * 4)
    output = VolumeOutput(label_logits=torch.ones(2, 1, 1, 4), class_probs=None)
    scored = case_result(output, region_batch(target), REGION_LOSS)
    assert all(math.isnan(value) for value in scored.dice)
    assert scored.segmentation_loss is None
    assert not scored.has_foreground


def test_the_original_grid_is_asked_with_the_probabilities_and_chooses_the_epoch(
    make_plan: Callable[..., Plan],
) -> None:
    asked: list[tuple[str, Tensor]] = []

    def original_dice(case_id: str, probabilities: Tensor) -> tuple[float, ...]:
        asked.append((case_id, probabilities))
        return (0.5, 0.25)

    target = region_target((1, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0, 1))
    output = VolumeOutput(label_logits=100 * (target[0, :2].float() - 0.5), class_probs=None)
    scored = case_result(output, region_batch(target), REGION_LOSS, original_dice)
    (case_id, probabilities), *_ = asked
    assert case_id == "a"
    torch.testing.assert_close(probabilities, target[0, :2].float())
    metrics = scores_of(scored, plan=make_plan()).metrics()
    assert (metrics["val/dsc_original_1"], metrics["val/dsc_original_2"]) == (0.5, 0.25)
    assert metrics["val/score"] == metrics["val/dsc_original"] == 0.375
    assert metrics["val/dsc"] == 1


def test_without_a_reference_on_the_original_grid_the_case_has_no_dice_there() -> None:
    target = region_target((1, 1, 0), (1, 0, 0))
    output = VolumeOutput(label_logits=100 * (target[0, :2].float() - 0.5), class_probs=None)
    scored = case_result(output, region_batch(target), REGION_LOSS, lambda *_: None)
    assert all(math.isnan(value) for value in scored.original_dice)
    assert len(scored.original_dice) == 2


def test_without_the_original_grid_nothing_is_logged_of_it(make_plan: Callable[..., Plan]) -> None:
    metrics = scores_of(result("a", (0.8, 0.4)), plan=make_plan()).metrics()
    assert not [name for name in metrics if "original" in name]


# --- the class ------------------------------------------------------------------------------------------


def told_apart(first: tuple[float, float], second: tuple[float, float]) -> tuple[CaseResult, CaseResult]:
    """Two cases, of class 0 and 1, with a mask each."""
    return result("a", (0.5,), target=0, probs=first), result("b", (0.7,), target=1, probs=second)


@pytest.mark.parametrize(
    ("first", "second", "collapsed"),
    [
        ((0.9, 0.1), (0.1, 0.9), 0.0),
        ((0.9, 0.1), (0.8, 0.2), 1.0),  # class 0 for both
        ((0.501, 0.499), (0.499, 0.501), 1.0),  # ln 2
    ],
)
def test_every_validation_says_whether_the_classes_have_collapsed(
    make_plan: Callable[..., Plan],
    first: tuple[float, float],
    second: tuple[float, float],
    collapsed: float,
) -> None:
    scores = scores_of(*told_apart(first, second), plan=make_plan())
    assert scores.metrics()["val/collapsed"] == collapsed
    assert bool(scores.collapse) == bool(collapsed)


def test_without_known_classes_nothing_collapses(make_plan: Callable[..., Plan]) -> None:
    assert "val/collapsed" not in scores_of(result("a", (0.5,)), plan=make_plan()).metrics()


def test_where_the_segmentation_does_not_learn_the_class_chooses_the_epoch(
    make_plan: Callable[..., Plan],
) -> None:
    cases = [replace(case, original_dice=(0.4,)) for case in told_apart((0.9, 0.1), (0.1, 0.9))]
    scores = ValidationScores.from_results(cases, make_plan(), 0.5, segmentation_learns=False).metrics()
    assert scores["val/score"] == scores["val/macro_f1"] == 1.0
    assert (scores["val/dsc"], scores["val/dsc_original"]) == pytest.approx((0.6, 0.4))
    learned = scores_of(*cases, plan=make_plan()).metrics()
    assert learned["val/score"] == learned["val/dsc_original"]


def test_a_volume_that_is_scored_on_the_host_has_the_same_score(
    tiny_run: "TinyRun", monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, own = tiny_run.plan, torch.device("cpu", 0)  # stands for the host: not the module's "cpu"
    label = torch.randint(0, 3, (1, 1, *plan.patch), dtype=torch.int16)
    batch = replace(volume_batch(target=1), image=torch.randn(1, 1, *plan.patch), label=(label,))
    synchronised, before, used = [], list(tiny_run.module._results), []

    def score(output: VolumeOutput, batch: Batch, loss: MultiTaskLoss, *others: Any) -> CaseResult:
        used.append((batch, loss))
        return case_result(output, batch, loss, *others)

    monkeypatch.setattr(module_of_training, "case_result", score)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronised.append(True))
    for home in (tiny_run.module.device, own):
        monkeypatch.setattr(module_of_training, "home_of", lambda *_, home=home: home)
        tiny_run.module.validation_step(batch, 0)
    there, here = tiny_run.module._results[-2:]
    tiny_run.module._results = before
    assert here == there
    assert synchronised == [True]
    assert [given is batch for given, _ in used] == [True, False]
    assert [loss is tiny_run.module.loss for _, loss in used] == [True, False]
