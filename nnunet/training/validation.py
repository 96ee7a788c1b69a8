"""Scores of a validation epoch, from whole volumes: Dice per label or region, loss, and the class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet.evaluation.baselines import collapse_reason
from nnunet.evaluation.classification import constant_baselines, macro_f1_of
from nnunet.inference.sliding_window import VolumeOutput
from nnunet.label_coding import LabelCoding
from nnunet.losses.multi_task import MultiTaskLoss
from utils.contracts import NO_CLASS, Batch, ModelOutput, Plan

UNKNOWN = float("nan")

# Case and label probabilities (C, D, H, W) on the planned grid -> Dice of what is scored on the grid before
# resampling; None without a reference.
OriginalDice = Callable[[str, Tensor], tuple[float, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One validation case, in plain values that travel between ranks."""

    case_id: str
    dice: tuple[float, ...]  # per region, else per foreground label; NaN where neither side has it
    has_foreground: bool  # whether there is a mask and any label in it
    segmentation_loss: float | None  # None where no voxel was annotated
    class_loss: float | None  # not yet weighted; None where the class is unknown or the model has none
    class_target: int
    class_probs: tuple[float, ...]
    original_dice: tuple[float, ...] = ()  # as `dice`, on the grid before resampling; empty if not asked for
    is_finite: bool = True  # whether every number of the network's output is


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationScores:
    """The scores of one validation epoch; class scores are None where the model has no class."""

    dice: tuple[float, ...]  # per region, else per foreground label; NaN where no case has a number
    has_foreground: bool  # whether any case's mask shows a label
    loss: float
    macro_f1: float | None
    constant_macro_f1: float | None
    original_dice: tuple[float, ...] = ()  # as `dice`, on the grid before resampling; empty if not asked for
    collapse: str | None = None  # why the classes count as collapsed; empty if they do not
    segmentation_learns: bool = True  # otherwise the class chooses the best epoch
    is_finite: bool = True  # whether every number of the network's outputs is

    @staticmethod
    def from_results(
        results: Sequence[CaseResult],
        plan: Plan,
        class_loss_weight: float,
        *,
        segmentation_learns: bool = True,
    ) -> ValidationScores:
        """Means over the cases that have the number; macro-F1 over the pooled cases, never over batches.

        The loss is put together as in training: segmentation + `class_loss_weight` * class, also where the
        weights are learned, which would change its meaning from epoch to epoch. A term that no case has
        counts 0; one that is not finite makes the loss so.
        """
        segmentation = _mean_loss([result.segmentation_loss for result in results])
        classification = _mean_loss([result.class_loss for result in results])
        is_finite = all(result.is_finite for result in results)
        known = [result for result in results if result.class_target != NO_CLASS and result.class_probs]
        macro_f1 = baseline = collapse = None
        if plan.num_classes > 1 and known:
            targets = np.array([result.class_target for result in known])
            probs = np.array([result.class_probs for result in known])
            macro_f1, baseline = _macro_f1(targets, probs, plan)
            # Of numbers that are none nothing can be said.
            collapse = collapse_reason(targets, probs, plan.class_names) if is_finite else ""
        return ValidationScores(
            dice=_means_over_cases([result.dice for result in results]),
            has_foreground=any(result.has_foreground for result in results),
            loss=segmentation + class_loss_weight * classification,
            macro_f1=macro_f1,
            constant_macro_f1=baseline,
            original_dice=_means_over_cases([result.original_dice for result in results]),
            collapse=collapse,
            segmentation_learns=segmentation_learns,
            is_finite=is_finite,
        )

    def metrics(self) -> dict[str, float]:
        """Names and values for the log.

        `val/dsc` is the mean over the labels that occur; it is left out where no mask shows a label.
        `val/dsc_original` is the same on the grid before resampling, where that was asked for. `val/score`,
        greater is better, chooses the best epoch: `val/dsc_original`, without it `val/dsc`, without both, or
        where the segmentation does not learn, `val/macro_f1`, without all minus `val/loss`. What it is
        depends on the cases and on what learns, so it stays the same in all epochs; it is minus infinity
        where an output or the loss is not finite.
        """
        values = {"val/loss": self.loss, "val/score": -self.loss}
        if self.macro_f1 is not None:
            values["val/score"] = self.macro_f1
        if self.has_foreground:
            values["val/dsc"] = _mean_of_known(np.array(self.dice))
        if self.has_foreground and self.segmentation_learns:
            values["val/score"] = values["val/dsc"]
        values |= {f"val/dsc_{place}": value for place, value in enumerate(self.dice, start=1)}
        if self.has_foreground and self.original_dice:
            values["val/dsc_original"] = _mean_of_known(np.array(self.original_dice))
            if self.segmentation_learns:
                values["val/score"] = values["val/dsc_original"]
        values |= {
            f"val/dsc_original_{place}": value for place, value in enumerate(self.original_dice, start=1)
        }
        if self.macro_f1 is not None and self.constant_macro_f1 is not None:
            values |= {"val/macro_f1": self.macro_f1, "val/macro_f1_constant": self.constant_macro_f1}
        if self.collapse is not None:
            values["val/collapsed"] = float(bool(self.collapse))
        if not (self.is_finite and math.isfinite(self.loss)):
            values["val/score"] = -math.inf
        return values


def case_result(
    output: VolumeOutput, batch: Batch, loss: MultiTaskLoss, original_dice: OriginalDice | None = None
) -> CaseResult:
    """Score one predicted volume against its batch of one; the only place that waits for the device.

    `original_dice` scores it on the grid before resampling too.
    """
    class_logits = (
        None if output.class_probs is None else output.class_probs.clamp_min(1e-7).log().unsqueeze(0)
    )
    volume = ModelOutput(label_logits=(output.label_logits.unsqueeze(0),), class_logits=class_logits)
    terms = loss(volume, batch)
    coding, label = loss.segmentation.coding, batch.label[0]
    has_mask = batch.mask_weights is None or bool(batch.mask_weights[0] > 0)
    counted = coding.counted(label)
    is_annotated = has_mask and (counted is None or bool(counted.any()))
    unknown = (UNKNOWN,) * coding.num_scored
    target = NO_CLASS if batch.class_target is None else int(batch.class_target[0])
    probs = () if output.class_probs is None else tuple(output.class_probs.tolist())
    original: tuple[float, ...] = ()
    if original_dice is not None:
        probabilities = coding.probabilities(volume.label_logits[0])[0]
        original = original_dice(batch.case_ids[0], probabilities) or unknown
    return CaseResult(
        case_id=batch.case_ids[0],
        dice=tuple(dice_of(volume.label_logits[0], label, coding).tolist()) if is_annotated else unknown,
        has_foreground=is_annotated and bool(coding.truth(label).any()),
        segmentation_loss=float(terms.segmentation) if is_annotated else None,
        class_loss=float(terms.classification) if probs and target != NO_CLASS else None,
        class_target=target,
        class_probs=probs,
        original_dice=original,
        is_finite=all(map(math.isfinite, probs)) and bool(output.label_logits.isfinite().all()),
    )


def dice_of(logits: Tensor, label: Tensor, coding: LabelCoding) -> Tensor:
    """(F,) Dice of the regions, else of the labels above 0, of a batch of one, on its device.

    `logits` (1, C, D, H, W) and `label` are coded as `coding` says; ignored voxels count nowhere. NaN where
    prediction and truth both lack the label.
    """
    counted = coding.counted(label)
    if coding.regions:
        predicted, truth = coding.predicted(logits)[0].flatten(1), coding.truth(label)[0].flatten(1)
        if counted is not None:
            predicted = predicted & counted.flatten()
        overlap = (predicted & truth).sum(dim=1).double()
        return 2 * overlap / (predicted.sum(dim=1) + truth.sum(dim=1))
    predicted, truth = logits.argmax(dim=1).flatten(), label.flatten().long()
    if counted is not None:
        kept = counted.flatten()
        predicted, truth = predicted[kept], truth[kept]
    confusion = torch.bincount(truth * coding.num_labels + predicted, minlength=coding.num_labels**2)
    confusion = confusion.view(coding.num_labels, coding.num_labels).double()
    overlap = confusion.diagonal()
    return (2 * overlap / (confusion.sum(dim=0) + confusion.sum(dim=1)))[1:]


def pool_results(results: Sequence[CaseResult]) -> list[CaseResult]:
    """The results of all ranks, each case once, sorted by name."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        pooled = list(results)
    else:
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, list(results))
        pooled = [result for part in gathered for result in part]
    return sorted({result.case_id: result for result in pooled}.values(), key=lambda result: result.case_id)


def _means_over_cases(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Of each column, over the rows that have a number."""
    table = np.array(values, float).reshape(len(values), -1)
    return tuple(_mean_of_known(column) for column in table.T)


def _mean_loss(losses: Sequence[float | None]) -> float:
    """Over the cases that have one, 0 if none has; not finite where one of them is not."""
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known else 0.0


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else UNKNOWN


def _macro_f1(targets: np.ndarray, probs: np.ndarray, plan: Plan) -> tuple[float, float]:
    """Of the predictions, and of the best constant one, for targets (N,) and probabilities (N, K)."""
    confusion = np.zeros((plan.num_classes, plan.num_classes))
    np.add.at(confusion, (targets, probs.argmax(axis=1)), 1)
    best = max(baseline.macro_f1 for baseline in constant_baselines(targets, plan.class_names))
    return float(macro_f1_of(confusion)), best
