"""Predict preprocessed cases and bring masks and references back to the scanner's grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_preprocessing.geometry import Box, planned_spacing, to_file_axes, to_planned_axes, uncrop
from data_preprocessing.previous_stage import with_prior
from data_preprocessing.restore import restore_label, restore_map
from data_preprocessing.volume_io import read_label_volume, write_volume
from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.classification import ClassificationSummary, summarise_classification
from nnunet.evaluation.figures import overlay_png
from nnunet.evaluation.overlap import CaseOverlap, CaseSource, OverlapRules, evaluate_case, overlap_rules
from nnunet.evaluation.postprocessing import MasksOfCase, Step, postprocess
from nnunet.evaluation.report import Overlay, extreme_cases
from scripts.mask_pairs import without_ignored
from scripts.model_run import ML_PER_MM3, planned_spacing_mm
from utils.contracts import NO_CLASS, Plan, Prediction, PreprocessedCase, Spacing
from utils.errors import DatasetError
from utils.prepared_folder import ORIGINAL_LABEL, PRIOR, case_file
from utils.run_log import progress
from utils.storage import read_array


class Predicts(Protocol):
    """A model, or several that were prepared for alike."""

    @property
    def plan(self) -> Plan:
        """What was trained for."""
        ...

    def predict(self, image: np.ndarray, case_id: str, spacing_mm: Spacing) -> Prediction:
        """The prediction for one prepared (C, D, H, W) volume."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """One predicted case; masks are (X, Y, Z) in the axes of its scan."""

    case: PreprocessedCase
    prediction: Prediction
    mask: np.ndarray
    reference: np.ndarray | None


def predict_prepared(
    run: Predicts, cases: Sequence[PreprocessedCase], steps: Sequence[Step] = ()
) -> Iterator[Answer]:
    """The answers for `cases`, one by one, so that one volume of probabilities is held at a time.

    Masks are cleaned by the `steps` of a postprocessing.
    """
    order = run.plan.regions_class_order
    for case in progress(cases, total=len(cases), label="Predict"):
        spacing_mm = planned_spacing_mm(case.footprint)
        prediction = run.predict(network_input(case, run.plan), case.case_id, spacing_mm)
        yield Answer(
            case=case,
            prediction=prediction,
            mask=postprocess(
                restore_label(prediction.label_probs, case.footprint, regions_class_order=order), steps
            ),
            reference=native_reference(case),
        )


def network_input(case: PreprocessedCase, plan: Plan) -> np.ndarray:
    """The prepared image (C, D, H, W), in a cascade with the labels that the previous stage gave the case.

    DatasetError, with what to run, if it has given none.
    """
    image = read_array(case.image)
    if plan.prior_labels == 0:
        return image
    prior = case_file(case.image.parent, case.case_id, PRIOR)
    if not prior.is_file():
        raise DatasetError(
            f"{prior} is missing: the previous stage has not predicted {case.case_id}. "
            "Run scripts/cascade.py."
        )
    return with_prior(image, read_array(prior), plan.prior_labels)


def write_mask(folder: Path, answer: Answer) -> None:
    """The mask on the grid of its scan, in the format of its scan."""
    footprint = answer.case.footprint
    write_volume(
        mask_file(folder, answer.case),
        answer.mask,
        affine=np.array(footprint.affine),
        qform_code=footprint.qform_code,
        sform_code=footprint.sform_code,
        spacing_mm=footprint.native_spacing_mm,
    )


def rules_of(plan: Plan) -> OverlapRules:
    """What a model of this plan is measured by: regions, else labels; ignored voxels count nowhere."""
    return overlap_rules(
        plan.label_names[: plan.num_labels],
        regions=plan.regions,
        region_names=plan.region_names,
        regions_class_order=plan.regions_class_order,
        ignore_label=plan.ignore_label,
    )


def mask_file(folder: Path, case: PreprocessedCase) -> Path:
    """Where the mask of a case lies in a folder of predictions."""
    return folder / f"{case.case_id}{case.footprint.mask_ending}"


def score_answer(answer: Answer, plan: Plan, folder: Path) -> CaseOverlap | None:
    """Overlap of one answer on the scanner's grid; None where the case has no reference."""
    if answer.reference is None:
        return None
    masks = MasksOfCase(case_id=answer.case.case_id, truth=answer.reference, predicted=answer.mask)
    return score_masks(answer.case, masks, plan, mask_file(folder, answer.case))


def score_masks(case: PreprocessedCase, masks: MasksOfCase, plan: Plan, file: Path) -> CaseOverlap:
    """Overlap of the mask in `file` with the case's reference."""
    return evaluate_case(
        case.case_id,
        masks.truth,
        masks.predicted,
        rules_of(plan),
        source=CaseSource(
            voxel_ml=float(np.prod(case.footprint.native_spacing_mm)) * ML_PER_MM3,
            reference_file=f"{case.case_id}{ORIGINAL_LABEL}",
            prediction_file=str(file),
        ),
    )


def score_classes(
    cases: Sequence[PreprocessedCase], probs: Sequence[tuple[float, ...]], plan: Plan, resampling: Resampling
) -> ClassificationSummary | None:
    """Classification over the cases whose class is known; None where there is nothing to score."""
    target = np.array([case.class_target for case in cases])
    if not all(probs) or (target == NO_CLASS).all():
        return None
    return summarise_classification(target, np.array(probs), plan.class_names, resampling=resampling)


def draw_extremes(
    overlaps: Sequence[CaseOverlap], cases: Sequence[PreprocessedCase], plan: Plan
) -> tuple[Overlay, ...]:
    """The best, the median and the worst case as pictures in the radiological view, their masks from disk."""
    by_id = {case.case_id: case for case in cases}
    overlays = []
    for chosen in extreme_cases(overlaps):
        case = by_id[chosen.case.case_id]
        footprint = case.footprint
        image = restore_map(read_array(case.image)[0].astype(np.float32), footprint)
        mask = read_label_volume(Path(chosen.case.prediction_file)).voxels
        reference = native_reference(case)
        assert reference is not None  # it was scored
        volumes = (image, without_ignored(reference, plan.ignore_label), mask)
        turned = [to_planned_axes(volume, orientation=footprint.orientation) for volume in volumes]
        _, height_mm, width_mm = planned_spacing(
            footprint.native_spacing_mm, orientation=footprint.orientation
        )
        png = overlay_png(turned[0], turned[1], turned[2], pixel_mm=(height_mm, width_mm))
        overlays.append(Overlay(rank=chosen.rank, case_id=case.case_id, dice=chosen.case.mean_dice, png=png))
    return tuple(overlays)


def native_reference(case: PreprocessedCase) -> np.ndarray | None:
    """The reference in file axes, from the stored label that was cropped but never resampled."""
    path = case_file(case.image.parent, case.case_id, ORIGINAL_LABEL)
    if not path.is_file():
        return None
    footprint = case.footprint
    box = Box(start=footprint.crop_start, stop=footprint.crop_stop)
    whole = uncrop(read_array(path)[0], box, shape=footprint.oriented_shape)
    return to_file_axes(whole, orientation=footprint.orientation, axis_order=footprint.axis_order)
