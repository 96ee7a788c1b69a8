"""Arrays beside a predicted mask: label probabilities on the grid of the scan, and the mask for NumPy."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from data_preprocessing.geometry import as_shape
from data_preprocessing.restore import restore_probabilities
from scripts.ensemble import ScanAnswer
from scripts.run_options import CLASSIFICATION, RunOptions
from utils.contracts import Plan
from utils.errors import UserError
from utils.storage import atomic_file, write_array

PROBABILITIES = "probabilities"  # the array in <case>.npz, as nnU-Net v2 calls it
MASK_FOLDER = "npy"
COMPRESSION_LEVEL = 1  # higher ones take several times as long for a few per cent


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFiles:
    """Which arrays a prediction keeps of each case: --npz and --save_preds."""

    probabilities: bool = False
    masks: bool = False

    @staticmethod
    def of(options: RunOptions) -> ArrayFiles:
        """What the options ask for; UserError where no mask is predicted that they could be about."""
        wanted = {"--npz": options.training.npz, "--save_preds": options.save_preds}
        if options.predictor == CLASSIFICATION and any(wanted.values()):
            names = ", ".join(name for name, value in wanted.items() if value)
            raise UserError(
                f"{names}: --predictor {CLASSIFICATION} predicts classes, no masks. Leave one of them away."
            )
        return ArrayFiles(probabilities=options.training.npz, masks=options.save_preds)

    def paths(self, folder: Path, case_id: str) -> tuple[Path, ...]:
        """The files of one case in a folder of predictions."""
        return (
            *((folder / f"{case_id}.npz",) if self.probabilities else ()),
            *((folder / MASK_FOLDER / f"{case_id}.npy",) if self.masks else ()),
        )

    def write(self, folder: Path, mask: np.ndarray, answer: ScanAnswer, plan: Plan) -> None:
        """Write them for a mask (X, Y, Z) and the answer that it was made from."""
        case_id = answer.prediction.case_id
        if self.probabilities:
            probs = answer.prediction.label_probs
            channels: Iterable[np.ndarray] = probs
            if answer.footprint is not None:
                channels = restore_probabilities(probs, answer.footprint, has_background=not plan.regions)
            write_probabilities(folder / f"{case_id}.npz", channels, (len(probs), *as_shape(mask.shape)))
        if self.masks:
            write_array(folder / MASK_FOLDER / f"{case_id}.npy", mask.transpose())


def write_probabilities(path: Path, channels: Iterable[np.ndarray], shape: tuple[int, int, int, int]) -> None:
    """Write channels (X, Y, Z) of the `shape` (C, X, Y, Z) as float16 (C, Z, Y, X), in nnU-Net v2's layout.

    There is a channel for each label, which add up to 1, or one for each region. They are what the network
    says, before any postprocessing, in the axes of the scan's file. One channel is held at a time.
    """
    header = {"descr": "<f2", "fortran_order": False, "shape": (shape[0], *reversed(shape[1:]))}
    with (
        atomic_file(path) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive,
        archive.open(f"{PROBABILITIES}.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, header)
        for channel in channels:
            array.write(np.ascontiguousarray(channel.transpose(), dtype="<f2").data)
