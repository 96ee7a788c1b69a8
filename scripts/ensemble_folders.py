"""The story of a mean without its models: probabilities in folders -> masks and classes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.run_log import progress, say

if TYPE_CHECKING:
    from data_preprocessing.volume_io import Volume
    from utils.contracts import Prediction

DESCRIPTION = (
    "Average the label probabilities (<case>.npz, of --npz or of nnU-Net's --save_probabilities) that "
    "predictions have left in folders, and class probabilities where there are any. Where the models are at "
    "hand, main.py --exec_mode predict --members A B does it in one step."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions:
    """Which folders, and where their mean goes."""

    preds: tuple[Path, ...] = field(metadata={"aliases": ("-i",)})
    """Two or more folders of predictions of the same cases: <case>.nii.gz, or another image format, with
    <case>.npz beside it."""
    output: Path = field(metadata={"aliases": ("-o",)})
    """Folder for the masks, <case>_classification.json and subtype_results.csv."""
    dataset: Path | None = None
    """dataset.json with the names of labels and regions; unset: what the first folder that knows it says."""
    npz: bool = False
    """Write the mean probabilities too."""

    def __post_init__(self) -> None:
        places = [folder.resolve() for folder in self.preds]
        if len(places) < 2 or len(set(places)) < len(places):
            raise UserError("--preds should name two or more different folders.")
        if self.output.resolve() in places:
            raise UserError(f"--output {self.output} is one of --preds. Give another folder.")


def run(options: EnsembleOptions) -> int:
    """Write the mean of every case; how many there are. DatasetError names what does not belong together."""
    from nnunet.evaluation.class_outputs import ClassAnswer, write_class_files
    from scripts.kept_probabilities import mean_of, open_folder, refuse_unlike
    from scripts.prediction_record import RECORD
    from utils.storage import write_json

    folders = [open_folder(path, options.dataset) for path in options.preds]
    refuse_unlike(folders)
    meaning = next((folder.meaning for folder in folders if folder.meaning is not None), None)
    order = meaning.regions_class_order if meaning else ()
    cases = sorted(folders[0].case_ids)
    say(f"Averaging {len(cases)} cases of {len(folders)} folders into {options.output}")
    answers: list[ClassAnswer] = []
    for case_id in progress(cases, total=len(cases), label="Average"):
        mean, grid = mean_of(folders, case_id, meaning)
        mask = options.output / folders[0].masks[case_id].name
        _write(mask, mean, grid, order, with_probabilities=options.npz)
        if mean.class_probs is not None:
            told, ending = tuple(mean.class_probs.tolist()), mask.name.removeprefix(case_id)
            answers.append(ClassAnswer(case_id=case_id, class_probs=told, mask_ending=ending))
    if answers:
        names = next(folder.class_names for folder in folders if folder.class_names)
        write_class_files(options.output, answers, names)
        say(f"Classes of {len(answers)} cases in {options.output}")
    record = {"ensemble_of": options.preds, "cases": len(cases)}
    write_json(options.output / RECORD, record | ({} if meaning is None else {"meaning": meaning}))
    print(f"{len(cases)} masks in {options.output}.")
    return len(cases)


def _write(
    path: Path, mean: Prediction, grid: Volume, order: tuple[int, ...], *, with_probabilities: bool
) -> None:
    """The mask at `path`, on the grid of the first folder's, and its probabilities beside it."""
    import numpy as np

    from data_preprocessing.restore import painted_regions
    from data_preprocessing.volume_io import write_on_grid_of
    from scripts.prediction_arrays import write_probabilities

    probs = mean.label_probs
    mask = painted_regions(probs, order) if order else probs.argmax(axis=0).astype(np.uint8)
    if with_probabilities:
        channels, x, y, z = probs.shape
        write_probabilities(path.parent / f"{mean.case_id}.npz", probs, (channels, x, y, z))
    write_on_grid_of(grid, path, mask)


def main() -> None:
    """Run from the command line."""
    words = sys.argv[1:]
    run(parse(EnsembleOptions, words, program="ensemble_folders.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
