"""Which prediction belongs to which reference: by case name, every gap named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DatasetError

MASK_ENDINGS = (".nii.gz", ".nii", ".npy", ".nrrd", ".mha", ".mhd", ".png", ".bmp", ".tif", ".tiff")
MAX_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPair:
    """The two files of one case; `prediction` is None where the model delivered nothing."""

    case_id: str
    reference: Path
    prediction: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """All cases to score, in the order of their names, and the predictions that no reference belongs to."""

    pairs: tuple[MaskPair, ...]
    without_reference: tuple[str, ...]


def masks_in(folder: Path) -> dict[str, Path]:
    """The masks of a folder by case name; two files for one case are an error."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in MASK_ENDINGS if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith("."):
            continue
        case_id = path.name.removesuffix(ending)
        if case_id in masks:
            raise DatasetError(
                f"Case {case_id} has two files in {folder}: {masks[case_id].name}, {path.name}. Remove one."
            )
        masks[case_id] = path
    return masks


def pair_masks(
    predictions: Mapping[str, Path], references: Mapping[str, Path], *, allow_missing: bool = False
) -> Pairing:
    """Match by case name. A reference without a prediction is an error unless `allow_missing` is set."""
    missing = sorted(set(references) - set(predictions))
    if not references:
        raise DatasetError(
            "No reference mask was found; --lbls needs a folder of .nii.gz masks or a dataset."
        )
    if not set(references).intersection(predictions):
        raise DatasetError(
            f"No prediction has the name of a reference; predictions: {listed(sorted(predictions))}; "
            f"references: {listed(sorted(references))}."
        )
    if missing and not allow_missing:
        raise DatasetError(
            f"{len(missing)} of {len(references)} cases have no prediction: {listed(missing)}. Predict "
            "them, name the fold with --splits and --fold, or count them as failures with --allow_missing."
        )
    pairs = tuple(
        MaskPair(case_id=case_id, reference=references[case_id], prediction=predictions.get(case_id))
        for case_id in sorted(references)
    )
    return Pairing(pairs=pairs, without_reference=tuple(sorted(set(predictions) - set(references))))


def keep_cases(references: Mapping[str, Path], case_ids: tuple[str, ...]) -> dict[str, Path]:
    """The references of `case_ids` only; a case without one is an error."""
    if unknown := sorted(set(case_ids) - set(references)):
        raise DatasetError(f"The split names cases without a reference mask: {listed(unknown)}.")
    return {case_id: references[case_id] for case_id in case_ids}


def listed(names: Sequence[str]) -> str:
    """Names for a message, cut short when there are many."""
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else "")
