"""The first pass over a dataset: each case is read once, checked, and measured for the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_preprocessing.cases import LoadedCase, inspect_case, label_values
from data_preprocessing.faults import errors_of, make_fault
from data_preprocessing.fingerprint import CaseMeasurement, measure_case
from data_preprocessing.integrity import CaseCheck, allowed_label_values, hash_of_content
from data_preprocessing.manifest import CaseInputs, describe_inputs
from data_preprocessing.prepare import crop_case
from utils.contracts import Dataset, RawCase
from utils.prepared_folder import RESERVED_IDS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseSurvey:
    """What the first pass found in one case; `inputs` and `measurement` are None where it cannot be used."""

    check: CaseCheck
    inputs: CaseInputs | None = None
    measurement: CaseMeasurement | None = None


def survey_case(case: RawCase, dataset: Dataset, *, num_samples: int) -> CaseSurvey:
    """Read, check and measure one case; bad data become faults, nothing is raised for them.

    With `num_samples` 0 the case is checked only.
    """
    inspection = inspect_case(
        case, allowed_labels=allowed_label_values(dataset), num_channels=len(dataset.channel_names)
    )
    faults = inspection.faults
    if case.case_id in RESERVED_IDS:
        what = f"{case.case_id!r} is the name of a file of every preprocessed folder."
        faults = (*faults, make_fault("E107", case.images[0], what, "rename the case.", case.case_id))
    loaded = inspection.loaded
    if loaded is None or errors_of(faults):
        return CaseSurvey(check=CaseCheck(case_id=case.case_id, faults=faults))
    check = CaseCheck(
        case_id=case.case_id,
        faults=faults,
        content_hash=hash_of_content(loaded),
        labels=() if loaded.label is None else label_values(loaded.label),
    )
    measurement = _measure(loaded, dataset, num_samples) if num_samples else None
    return CaseSurvey(check=check, inputs=describe_inputs(case), measurement=measurement)


def _measure(loaded: LoadedCase, dataset: Dataset, num_samples: int) -> CaseMeasurement:
    cropped = crop_case(loaded)
    label = np.zeros(cropped.mask.shape, np.int16) if cropped.label is None else cropped.label
    if dataset.ignore_label is not None:
        # A voxel that nobody annotated says nothing about the foreground.
        label = np.where(label == dataset.ignore_label, 0, label)
    return measure_case(
        cropped.image,
        label,
        case_id=loaded.case_id,
        spacing_mm=cropped.spacing_mm,
        relative_size=cropped.relative_size,
        num_samples=num_samples,
    )
