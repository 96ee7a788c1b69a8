"""What evaluation shows beside the overlap: classes, the report's facts and pictures, a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.class_answers import PREDICTIONS_TABLE
from nnunet.evaluation.classification import AreaUnderCurve, ClassificationSummary, auc_of_score
from nnunet.evaluation.overlap import CaseOverlap, OverlapRules
from nnunet.evaluation.pairing import Pairing, listed
from nnunet.evaluation.report import Fact, Overlay, extreme_cases, interval_text, number_text
from nnunet.evaluation.summary import SegmentationSummary
from nnunet.evaluation.tables import read_class_names, read_class_predictions
from scripts.class_evaluation import ClassAnswers, ClassResult, measure_classes
from scripts.mask_pairs import References, draw_overlay
from utils.contracts import NO_CLASS
from utils.errors import DatasetError

PREDICTIONS_FILE = PREDICTIONS_TABLE
CURVES = ("train/loss", "val/loss", "val/dsc", "val/macro_f1")


def score_classes(
    folder: Path, references: References, cases: Sequence[CaseOverlap], resampling: Resampling
) -> ClassResult | None:
    """Compare predictions.csv with the dataset's classes; None where one of them has no classes.

    A scored case that the table lacks is an error. Where the case has no mask either and was allowed to be
    missing, it counts as a certain answer for a wrong class.
    """
    path = folder / PREDICTIONS_FILE
    class_names = references.dataset.class_names if references.dataset else ()
    if not class_names or not path.is_file() or not read_class_names(path):
        return None
    table = read_class_predictions(path, class_names)
    rows = dict(zip(table.case_ids, table.class_probs, strict=True))
    known = [references.case(case.case_id) for case in cases]
    target = np.array(
        [NO_CLASS if case is None or case.class_target is None else case.class_target for case in known]
    )
    if missing := [
        case.case_id
        for case, index in zip(cases, target, strict=True)
        if index != NO_CLASS and case.case_id not in rows and not case.is_missing
    ]:
        raise DatasetError(f"{path} lacks {len(missing)} cases: {listed(missing)}. Predict their class too.")
    failure = np.eye(len(class_names))
    probs = [
        rows.get(case.case_id, failure[(index + 1) % len(class_names)])
        for case, index in zip(cases, target, strict=True)
    ]
    if (target == NO_CLASS).all():
        return None
    answers = ClassAnswers(
        class_names=class_names,
        class_target=target,
        predicted=np.stack(probs).argmax(axis=1),
        class_probs=np.stack(probs),
        volumes_ml=_predicted_volumes(cases),
    )
    result = measure_classes(answers, resampling)
    return replace(result, volume_auroc=_volume_auroc(target, cases, len(class_names)))


def report_facts(title: str, preds: Path, lbls: Path, cases: Sequence[CaseOverlap]) -> tuple[Fact, ...]:
    """The table about the data: what was compared, and how much of it."""
    volumes = np.array([case.whole_organ.counts.n_ref * case.voxel_ml for case in cases])
    return (
        Fact(name="Dataset", value=title),
        Fact(name="Predictions", value=str(preds)),
        Fact(name="References", value=str(lbls)),
        Fact(name="Cases", value=str(len(cases))),
        Fact(
            name="Reference volume (all labels)",
            value=f"median {np.median(volumes):.3g} ml, {volumes.min():.3g} to {volumes.max():.3g} ml",
        ),
    )


def report_notes(pairing: Pairing) -> tuple[str, ...]:
    """Warnings for the reader about cases that do not pair up."""
    missing = [pair.case_id for pair in pairing.pairs if pair.prediction is None]
    notes = []
    if missing:
        notes.append(f"Cases without a prediction, scored 0: {listed(missing)}.")
    if pairing.without_reference:
        notes.append(f"Predictions without a reference, not scored: {listed(pairing.without_reference)}.")
    return tuple(notes)


def draw_extremes(
    cases: Sequence[CaseOverlap], pairing: Pairing, references: References, rules: OverlapRules
) -> tuple[Overlay, ...]:
    """The best, the median and the worst case as pictures."""
    pairs = {pair.case_id: pair for pair in pairing.pairs}
    overlays = []
    for chosen in extreme_cases(cases):
        raw = references.case(chosen.case.case_id)
        image = raw.images[0] if raw and raw.images and raw.images[0].is_file() else None
        overlays.append(draw_overlay(chosen, pairs[chosen.case.case_id], image, rules))
    return tuple(overlays)


def print_result(
    segmentation: SegmentationSummary | None, classification: ClassificationSummary | None, report: Path
) -> None:
    """The result on standard output, and where the report is."""
    console = Console()
    if segmentation:
        print_overlap(segmentation)
    if classification:
        best = classification.best_baseline
        console.print(
            f"macro-F1 {classification.macro_f1:.3f} ({interval_text(classification.intervals.macro_f1)}), "
            f"always {best.class_name!r} {best.macro_f1:.3f}; "
            f"AUROC {number_text(classification.auroc.value)}; "
            f"accuracy {classification.accuracy:.3f}",
            markup=False,
        )
        if classification.collapse:
            console.print(f"Warning: the classifier has collapsed: {classification.collapse}.", markup=False)
    console.print(f"Report: {report}", markup=False, soft_wrap=True)


def print_overlap(segmentation: SegmentationSummary) -> None:
    """The Dice of each structure and of the whole organ, on standard output."""
    Console().print(_dice_table(segmentation))


def _dice_table(segmentation: SegmentationSummary) -> Table:
    table = Table("label", title=f"Dice over {len(segmentation.cases)} cases")
    for column in ("cases", "mean", "95 % interval", "median", "lowest"):
        table.add_column(column, justify="right")
    # With one label the whole organ is the same mask.
    whole = (segmentation.whole_organ,) if len(segmentation.structures) != 1 else ()
    for item in (*segmentation.structures, *whole):
        numbers = (item.mean_dice, item.median_dice, item.min_dice)
        mean, median, lowest = (number_text(number) for number in numbers)
        # Text, not markup: a label may be called [bold].
        table.add_row(
            item.name.replace("[", r"\["),
            str(item.num_cases),
            mean,
            interval_text(item.dice_interval),
            median,
            lowest,
        )
    return table


def _volume_auroc(
    target: np.ndarray, cases: Sequence[CaseOverlap], num_classes: int
) -> AreaUnderCurve | None:
    """The AUROC of the predicted volume as the only evidence for class 1."""
    if num_classes != 2:
        return None
    volumes = np.array([case.whole_organ.counts.n_pred * case.voxel_ml for case in cases])
    known = target != NO_CLASS
    return auc_of_score(target[known], volumes[known])


def _predicted_volumes(cases: Sequence[CaseOverlap]) -> np.ndarray:
    """(N, S) millilitres of each structure as predicted; of the whole organ where there is no structure."""
    return np.array(
        [
            [item.counts.n_pred * case.voxel_ml for item in case.structures or (case.whole_organ,)]
            for case in cases
        ]
    )
