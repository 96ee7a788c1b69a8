"""Label probabilities that predictions have left in a folder, read, checked and averaged."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preprocessing.restore import painted_regions
from data_preprocessing.volume_io import Volume
from nnunet.evaluation.class_answers import class_answers_in, names_in, read_class_answers
from nnunet.evaluation.pairing import listed, masks_in
from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from scripts.label_meaning import Meaning
from scripts.mask_pairs import DESCRIPTION_FILE, described_by, read_mask, refuse_other_grid
from scripts.prediction_arrays import PROBABILITIES
from scripts.prediction_record import RECORD
from utils.contracts import Prediction
from utils.errors import DatasetError
from utils.storage import from_plain, read_json

ENDING = ".npz"
SUM_TOLERANCE = 0.02  # how far half precision, over many labels, may bring a sum of probabilities from 1
LEAST_AGREEMENT = 0.5  # of a mask with its own probabilities; what is turned or of another case has less


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFolder:
    """A folder of predictions: masks and probabilities by case name, what they mean and the classes told."""

    path: Path
    masks: Mapping[str, Path]
    meaning: Meaning | None  # None: neither this program nor a dataset.json says it
    classes: Mapping[str, tuple[float, ...]]
    class_names: tuple[str, ...] = ()

    @property
    def case_ids(self) -> frozenset[str]:
        """The cases with a mask and probabilities."""
        return frozenset(name for name in self.masks if (self.path / f"{name}{ENDING}").is_file())


def open_folder(path: Path, dataset: Path | None) -> KeptFolder:
    """What lies in a folder; `dataset` (dataset.json) says what it means, else the folder itself.

    DatasetError where no case has both a mask and probabilities.
    """
    masks = {name: file for name, file in masks_in(path).items() if file.suffix != ".npy"}
    class_names, classes = _classes_in(path)
    folder = KeptFolder(
        path=path, masks=masks, meaning=_meaning_in(path, dataset), classes=classes, class_names=class_names
    )
    if not folder.case_ids:
        raise DatasetError(
            f"{path} holds no case with a mask and its probabilities (<case>{ENDING}). Predict with --npz, "
            "or with nnU-Net's --save_probabilities."
        )
    return folder


def refuse_unlike(folders: Sequence[KeptFolder]) -> None:
    """DatasetError where folders are not of the same cases, labels or classes."""
    first = folders[0]
    for other in folders[1:]:
        if missing := sorted(first.case_ids ^ other.case_ids):
            raise DatasetError(
                f"{first.path} and {other.path} do not hold masks and probabilities of the same cases: "
                f"{listed(missing)}. Predict what is missing, or remove it from the other."
            )
        if first.meaning and other.meaning and (changed := first.meaning.changes(other.meaning)):
            raise DatasetError(
                f"{other.path} has another {', '.join(changed)} than {first.path}: their probabilities "
                "cannot be averaged."
            )
    told = [folder for folder in folders if folder.class_names]
    for other in told[1:]:
        if other.class_names != told[0].class_names:
            raise DatasetError(
                f"{other.path} tells the classes {listed(other.class_names)}, {told[0].path} tells "
                f"{listed(told[0].class_names)}."
            )


def mean_of(
    folders: Sequence[KeptFolder], case_id: str, meaning: Meaning | None
) -> tuple[Prediction, Volume]:
    """The mean (C, X, Y, Z) over the folders, of classes too, and the first one's mask, which has the grid.

    Two volumes of probabilities are held at a time. DatasetError names a file that does not fit the others.
    """
    first = folders[0].masks[case_id]
    grid = read_mask(first)
    if grid.voxels.ndim != 3:
        raise DatasetError(f"{first} should be a mask with three axes, got {grid.voxels.shape}.")

    def answers() -> Iterator[MemberAnswer]:
        channels = meaning.num_channels if meaning else None
        for folder in folders:
            probs = _checked(folder, case_id, grid, meaning)
            channels = channels or len(probs)
            if len(probs) != channels:
                raise DatasetError(
                    f"{folder.path / case_id}{ENDING} has {len(probs)} channels, {channels} are expected."
                )
            told = folder.classes.get(case_id)
            classes = None if told is None else np.array(told)
            yield MemberAnswer(
                prediction=Prediction(case_id=case_id, label_probs=probs, class_probs=classes, num_members=1)
            )

    mean = mean_prediction(answers())
    if meaning is None and abs(mean.label_probs.sum(axis=0) - 1).max() > SUM_TOLERANCE:
        raise DatasetError(
            f"{case_id}: its probabilities do not add up to 1, as those of regions. Give --dataset with the "
            "dataset.json that names the regions."
        )
    return mean, grid


def _checked(folder: KeptFolder, case_id: str, grid: Volume, meaning: Meaning | None) -> np.ndarray:
    """A folder's probabilities (C, X, Y, Z) of a case, which are those of its mask, on the grid of all."""
    path, mask_path = folder.path / f"{case_id}{ENDING}", folder.masks[case_id]
    mask = read_mask(mask_path)
    refuse_other_grid(mask, mask_path, grid, "mask of the first folder")
    probs = read_probabilities(path, grid.voxels.shape)
    _refuse_other_mask(probs, mask.voxels, meaning, path, mask_path)
    return probs


def read_probabilities(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array `probabilities` (C, z, y, x) of a .npz as (C, X, Y, Z), for a mask of `shape` (X, Y, Z)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            stored = np.asarray(archive[PROBABILITIES])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} holds no readable array {PROBABILITIES!r} ({error}).") from error
    expected = tuple(reversed(shape))
    if stored.dtype.kind != "f" or stored.ndim != 4 or stored.shape[1:] != expected:
        raise DatasetError(
            f"{path}: {PROBABILITIES} is {stored.dtype} {stored.shape}; it should be a float per channel and "
            f"voxel of its mask, (C, {', '.join(map(str, expected))})."
        )
    if not np.isfinite(stored).all():
        raise DatasetError(f"{path}: {PROBABILITIES} has values that are not finite.")
    return stored.transpose(0, 3, 2, 1)


def _refuse_other_mask(
    probs: np.ndarray, mask: np.ndarray, meaning: Meaning | None, path: Path, mask_path: Path
) -> None:
    """DatasetError where a mask is not that of its probabilities: of another case, or with turned axes.

    Postprocessing may have taken voxels from the mask, so only those that it still has are looked at.
    """
    foreground = mask > 0
    if not foreground.any():
        return
    of_voxels = probs[:, foreground]
    order = meaning.regions_class_order if meaning else ()
    label = painted_regions(of_voxels, order) if order else of_voxels.argmax(axis=0)
    agreement = float((label == mask[foreground]).mean())
    if agreement < LEAST_AGREEMENT:
        raise DatasetError(
            f"{path} says something else than {mask_path} at {1 - agreement:.0%} of its voxels. They are not "
            "of one prediction, or the array has other axes than the mask (a reader that turns scans)."
        )


def _meaning_in(path: Path, dataset: Path | None) -> Meaning | None:
    """From `dataset`, else from run.json of this program, else from a dataset.json in the folder."""
    if dataset is not None:
        return Meaning.of(described_by(dataset))
    record = path / RECORD
    if record.is_file():
        content = read_json(record)
        if isinstance(content, dict) and "meaning" in content:
            return from_plain(Meaning, content["meaning"], source=str(record))
    if (path / DESCRIPTION_FILE).is_file():
        return Meaning.of(described_by(path))
    return None


def _classes_in(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """The class names and each case's class probabilities; empty where the folder tells none."""
    source = class_answers_in(path)
    names = () if source is None else names_in(source)
    if source is None or not names:  # a table of classes alone has no probabilities
        return (), {}
    told = read_class_answers(source, names)
    probs = () if told.class_probs is None else told.class_probs.tolist()
    return names, {name: tuple(row) for name, row in zip(told.case_ids, probs, strict=True)}
