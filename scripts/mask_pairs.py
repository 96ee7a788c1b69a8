"""Predicted masks beside their references for evaluation: found, read, checked and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np

from data_preprocessing.cases import POSITION_TOLERANCE_MM
from data_preprocessing.dataset import describe_dataset, read_dataset
from data_preprocessing.faults import DatasetFaults, errors_of
from data_preprocessing.geometry import planned_spacing, to_planned_axes
from data_preprocessing.nifti_header import corner_distance_mm
from data_preprocessing.restore import painted_regions
from data_preprocessing.volume_io import Volume, read_label_volume, read_volume
from nnunet.evaluation.figures import overlay_png
from nnunet.evaluation.overlap import (
    MM3_PER_ML,
    CaseOverlap,
    CaseSource,
    EmptyRule,
    OverlapRules,
    evaluate_case,
    failed_case,
    overlap_rules,
)
from nnunet.evaluation.pairing import MaskPair, keep_cases, masks_in
from nnunet.evaluation.report import Overlay, RankedCase
from utils.contracts import Dataset, RawCase
from utils.errors import DatasetError
from utils.splits import no_such_fold, read_folds
from utils.storage import read_array

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The reference masks by case name, and the dataset that explains them where there is one."""

    masks: dict[str, Path]
    dataset: Dataset | None

    def case(self, case_id: str) -> RawCase | None:
        """What the dataset knows of a case: patient, images, class; None where it knows nothing."""
        known = (*self.dataset.training, *self.dataset.test) if self.dataset else ()
        return next((case for case in known if case.case_id == case_id), None)

    def patients(self, case_ids: Sequence[str]) -> tuple[str, ...]:
        """The patient of each case; a case that the dataset does not know is its own."""
        known = {case.case_id: case.patient_id for case in (self.dataset.training if self.dataset else ())}
        return tuple(known.get(case_id, case_id) for case_id in case_ids)


def find_references(lbls: Path, dataset: Path | None) -> References:
    """The masks in a folder, or those of a raw dataset's training cases.

    Names and classes come from `dataset` (dataset.json or its folder), else from `lbls` or the folder above.
    """
    if (lbls / DESCRIPTION_FILE).is_file():
        described = read_dataset(lbls)
        masks = {case.case_id: case.label for case in described.training if case.label is not None}
        return References(masks=masks, dataset=described if dataset is None else described_by(dataset))
    if dataset is None and (lbls.resolve().parent / DESCRIPTION_FILE).is_file():
        dataset = lbls.resolve().parent
    return References(masks=masks_in(lbls), dataset=None if dataset is None else described_by(dataset))


def select_fold(references: References, splits: Path | None, fold: int) -> References:
    """The validation cases of one fold of splits_final.json; everything without a splits file."""
    if splits is None:
        return references
    folds = read_folds(splits)
    if not 0 <= fold < len(folds):
        raise DatasetError(no_such_fold(splits, len(folds), fold))
    return replace(references, masks=keep_cases(references.masks, folds[fold].val))


def rules_for(references: References, empty: EmptyRule, num_jobs: int) -> OverlapRules:
    """What to measure; without a dataset.json, every value from 1 to the largest in the references."""
    if references.dataset is not None:
        dataset = references.dataset
        return overlap_rules(
            dataset.label_names,
            regions=dataset.regions,
            region_names=dataset.region_names,
            regions_class_order=dataset.regions_class_order,
            ignore_label=dataset.ignore_label,
            empty=empty,
        )
    highest = joblib.Parallel(n_jobs=num_jobs)(
        joblib.delayed(_highest_label)(path) for path in references.masks.values()
    )
    return overlap_rules(
        [str(value) for value in range(1 + max([0, *(int(value or 0) for value in highest)]))], empty=empty
    )


def measure_pairs(pairs: Sequence[MaskPair], rules: OverlapRules, num_jobs: int) -> tuple[CaseOverlap, ...]:
    """The overlap of every pair, `num_jobs` at a time (-1: one per core); names all faulty cases at once."""
    results = joblib.Parallel(n_jobs=num_jobs)(joblib.delayed(_measure)(pair, rules) for pair in pairs)
    if faults := [result for result in results if isinstance(result, str)]:
        raise DatasetError("\n".join(faults))
    return tuple(result for result in results if isinstance(result, CaseOverlap))


def read_pair(pair: MaskPair, rules: OverlapRules) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction (x, y, z) of a pair that has both; DatasetError for unequal grids."""
    assert pair.prediction is not None  # the caller asks for both
    reference = _read_reference(pair.reference)
    return reference.voxels, _read_prediction(pair.prediction, reference, rules)


def draw_overlay(chosen: RankedCase, pair: MaskPair, image: Path | None, rules: OverlapRules) -> Overlay:
    """The case as a picture in the radiological view; contours on black where there is no image."""
    reference = _read_reference(pair.reference)
    predicted = (
        np.zeros_like(reference.voxels)
        if pair.prediction is None
        else _read_prediction(pair.prediction, reference, rules)
    )
    background = np.zeros(reference.voxels.shape, np.float32)
    if image is not None:
        voxels = read_volume(image).voxels
        first = voxels if voxels.ndim == reference.voxels.ndim else voxels[..., 0]
        background = first if first.shape == background.shape else background
    turned = [
        to_planned_axes(array, orientation=reference.orientation)
        for array in (background, without_ignored(reference.voxels, rules.ignore_label), predicted)
    ]
    _, height_mm, width_mm = planned_spacing(reference.spacing_mm, orientation=reference.orientation)
    png = overlay_png(turned[0], turned[1], turned[2], pixel_mm=(height_mm, width_mm))
    return Overlay(rank=chosen.rank, case_id=pair.case_id, dice=chosen.case.mean_dice, png=png)


def without_ignored(reference: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """The mask to be drawn: nobody knows what an ignored voxel is, so it gets no contour."""
    return reference if ignore_label is None else np.where(reference == ignore_label, 0, reference)


def described_by(path: Path) -> Dataset:
    """A description's names and regions; its images may be absent, as beside a folder of predictions."""
    reading = describe_dataset(path.parent if path.is_file() else path)
    if not reading.dataset.label_names:
        raise DatasetFaults(errors_of(reading.faults))
    return reading.dataset


def _highest_label(path: Path) -> int:
    return int(_read_reference(path).voxels.max())


def _measure(pair: MaskPair, rules: OverlapRules) -> CaseOverlap | str:
    """The case's overlap, or what is wrong with it in one sentence: workers return errors as values."""
    try:
        reference = _read_reference(pair.reference)
        source = CaseSource(
            voxel_ml=float(np.prod(reference.spacing_mm)) / MM3_PER_ML,
            reference_file=str(pair.reference),
            prediction_file=str(pair.prediction or ""),
        )
        if pair.prediction is None:
            return failed_case(pair.case_id, reference.voxels, rules, source=source)
        predicted = _read_prediction(pair.prediction, reference, rules)
        return evaluate_case(pair.case_id, reference.voxels, predicted, rules, source=source)
    except DatasetError as error:
        message = str(error)
        return message if pair.case_id in message else f"Case {pair.case_id}: {message}"


def _read_reference(path: Path) -> Volume:
    if path.suffix == ".npy":
        raise DatasetError(f"{path}: references need a voxel size; give NIfTI masks, not .npy files.")
    return read_mask(path)


def read_mask(path: Path) -> Volume:
    """The mask at `path`; with one channel as (x, y, z)."""
    volume = read_label_volume(path)
    if volume.voxels.ndim == 4 and volume.voxels.shape[3] == 1:
        return replace(volume, voxels=volume.voxels[..., 0])
    return volume


def _read_prediction(path: Path, reference: Volume, rules: OverlapRules) -> np.ndarray:
    """The predicted mask (x, y, z) on the reference's grid.

    A .npy file is (z, y, x), or holds probabilities: (label, z, y, x), with regions (region, z, y, x).
    """
    if path.suffix == ".npy":
        stored = read_array(path)
        return (_labels_of(stored, rules, path) if stored.ndim == 4 else stored).transpose()
    volume = read_mask(path)
    refuse_other_grid(volume, path, reference, "reference")
    return volume.voxels


def refuse_other_grid(volume: Volume, path: Path, other: Volume, name: str) -> None:
    """DatasetError where the voxels of a mask at `path` are not where those of `other`, its `name`, are."""
    shape = other.voxels.shape
    if volume.voxels.shape != shape:
        raise DatasetError(
            f"{path} has shape {volume.voxels.shape} but the {name} has {shape}. "
            f"Predict on the {name}'s grid, or resample one of them."
        )
    distance = corner_distance_mm(volume.affine, other.affine, shape)
    if distance > POSITION_TOLERANCE_MM:
        raise DatasetError(
            f"{path} lies {distance:.3g} mm from its {name} "
            f"({volume.orientation}, {other.orientation}); {POSITION_TOLERANCE_MM} mm are allowed. "
            "Both affines must describe the same grid."
        )


def _labels_of(probabilities: np.ndarray, rules: OverlapRules, path: Path) -> np.ndarray:
    """(C, z, y, x) -> (z, y, x)."""
    channels = len(probabilities)
    if rules.regions_class_order:
        if channels != len(rules.regions_class_order):
            raise DatasetError(
                f"{path} has {channels} channels, but {len(rules.regions_class_order)} regions need one "
                "probability each."
            )
        return painted_regions(probabilities, rules.regions_class_order)
    if channels < rules.num_labels:
        raise DatasetError(
            f"{path} has {channels} channels, but {rules.num_labels} labels need one probability each "
            "(background first)."
        )
    return probabilities.argmax(axis=0).astype(np.int16)
