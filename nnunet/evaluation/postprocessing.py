"""Keep only the largest component of a structure, where that helped on cases the models had not seen.

The rule is nnU-Net's (Isensee et al. 2021): first all labels together, then every structure by itself. Each
is applied only where the mean Dice rises; a tie does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet.evaluation.overlap import CaseOverlap, OverlapRules, evaluate_case

WHOLE_FOREGROUND = "all foreground"
TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a face, an edge or a corner are connected


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Of the union of `labels` the largest component stays; its other voxels become `replacement`."""

    name: str
    labels: tuple[int, ...]
    replacement: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A step that was tried: mean Dice of what it is judged by, without and with it."""

    step: Step
    dice_before: float
    dice_after: float
    is_applied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """The steps to apply, in order, and how they were found.

    `dice_before` and `dice_after` are means over structures and cases, with none and with all of the steps.
    `networks` are the hashes of the weights whose masks they were found on; empty where that is not known.
    """

    steps: tuple[Step, ...]
    trials: tuple[Trial, ...]
    num_cases: int
    dice_before: float
    dice_after: float
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MasksOfCase:
    """Reference and prediction of one case, label values (X, Y, Z) on one grid."""

    case_id: str
    truth: np.ndarray
    predicted: np.ndarray


ReadMasks = Callable[[], Iterable[MasksOfCase]]  # from the first case on at each call: masks are not kept


def postprocess(mask: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """The mask (X, Y, Z) of label values after the steps; itself where they change nothing."""
    for step in steps:
        mask = keep_largest(mask, step)
    return mask


def keep_largest(mask: np.ndarray, step: Step) -> np.ndarray:
    """`mask` with the largest component of the step's structure only; itself where there is no other.

    Components of equal size, if none is larger, all stay: which comes first depends on how the scan is
    stored.
    """
    is_structure = np.isin(mask, step.labels)
    boxes = ndimage.find_objects(is_structure.astype(np.uint8))
    if not boxes:
        return mask
    box = boxes[0]
    components = np.zeros(is_structure[box].shape, np.int32)
    ndimage.label(is_structure[box], structure=TOUCHING, output=components)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # what is not the structure
    is_removed = sizes < sizes.max()
    is_removed[0] = False
    if not is_removed.any():
        return mask
    kept = mask.copy()
    kept[box][is_removed[components]] = step.replacement
    return kept


def whole_step(rules: OverlapRules) -> Step:
    """The first step to try: all labels together."""
    return Step(name=WHOLE_FOREGROUND, labels=rules.whole_organ.labels)


def structure_steps(rules: OverlapRules) -> tuple[Step, ...]:
    """A step for every label or region, but for one that is all of the foreground.

    A voxel taken from a region gets the label of the smallest region around it, so that an inner region loses
    its islands without leaving holes in the outer one.
    """
    whole = set(rules.whole_organ.labels)
    steps = []
    for structure in rules.structures:
        if set(structure.labels) == whole:
            continue
        around = [
            (len(outer.labels), value)
            for outer, value in zip(rules.structures, rules.regions_class_order, strict=False)
            if set(outer.labels) > set(structure.labels)
        ]
        replacement = min(around)[1] if around else 0
        steps.append(Step(name=structure.name, labels=structure.labels, replacement=replacement))
    return tuple(steps)


def find_postprocessing(read_masks: ReadMasks, rules: OverlapRules) -> Postprocessing:
    """The steps that raise the mean Dice of these cases, which no model that made the masks was trained on.

    The masks are read two or three times, with regions once for each and once before, and one case is held at
    a time.
    """
    whole = whole_step(rules)
    before, after = _measured(read_masks, rules, ((), (whole,)))
    trials = [_trial(whole, before, after)]
    steps, base = ((whole,), after) if trials[0].is_applied else ((), before)
    for group in _independent(structure_steps(rules), rules):
        tried = _measured(read_masks, rules, [(*steps, step) for step in group])
        judged = [
            _structure_trial(step, base, overlaps, rules) for step, overlaps in zip(group, tried, strict=True)
        ]
        trials += judged
        if helpful := tuple(trial.step for trial in judged if trial.is_applied):
            steps = (*steps, *helpful)
            base = tried[0] if len(group) == 1 else _measured(read_masks, rules, (steps,))[0]
    return Postprocessing(
        steps=steps,
        trials=tuple(trials),
        num_cases=len(before),
        dice_before=mean_dice(before),
        dice_after=mean_dice(base),
    )


def _independent(steps: tuple[Step, ...], rules: OverlapRules) -> list[tuple[Step, ...]]:
    """Steps that can be judged in one reading: those of labels; regions overlap, so one at a time."""
    if rules.regions_class_order:
        return [(step,) for step in steps]
    return [steps] if steps else []


def structure_means(cases: Sequence[CaseOverlap]) -> np.ndarray:
    """(S,) mean Dice of every structure over the cases that have one; NaN where none has."""
    dice = np.array([[item.dice for item in case.structures] for case in cases])
    counts = (~np.isnan(dice)).sum(axis=0)
    total = np.nansum(dice, axis=0)
    return np.divide(total, counts, out=np.full(dice.shape[1], np.nan), where=counts > 0)


def mean_dice(cases: Sequence[CaseOverlap]) -> float:
    """The mean of the structures' means; a structure that no case shows is left out."""
    return _mean_of_defined(structure_means(cases))


def _measured(
    read_masks: ReadMasks, rules: OverlapRules, variants: Sequence[tuple[Step, ...]]
) -> list[list[CaseOverlap]]:
    """The overlap of every case for each variant of steps; what a step leaves as it is is counted once."""
    found: list[list[CaseOverlap]] = [[] for _ in variants]
    for pair in read_masks():
        unchanged: CaseOverlap | None = None
        for overlaps, steps in zip(found, variants, strict=True):
            mask = postprocess(pair.predicted, steps)
            if mask is pair.predicted:
                unchanged = unchanged or evaluate_case(pair.case_id, pair.truth, mask, rules)
                overlaps.append(unchanged)
            else:
                overlaps.append(evaluate_case(pair.case_id, pair.truth, mask, rules))
    return found


def _trial(step: Step, before: Sequence[CaseOverlap], after: Sequence[CaseOverlap]) -> Trial:
    """All labels together: the mean over the structures has to rise, and none of them may fall."""
    low, high = mean_dice(before), mean_dice(after)
    has_fallen = (structure_means(after) < structure_means(before)).any()
    return Trial(step=step, dice_before=low, dice_after=high, is_applied=high > low and not has_fallen)


def _structure_trial(
    step: Step, before: Sequence[CaseOverlap], after: Sequence[CaseOverlap], rules: OverlapRules
) -> Trial:
    """A structure by itself: its own mean has to rise; with overlapping regions the mean of all, too."""
    place = [structure.name for structure in rules.structures].index(step.name)
    low, high = float(structure_means(before)[place]), float(structure_means(after)[place])
    is_applied = high > low and mean_dice(after) > mean_dice(before)
    return Trial(step=step, dice_before=low, dice_after=high, is_applied=is_applied)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
