"""The story of cleaning masks in a folder: the steps that help where references are known, or a file's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.run_log import progress, say

if TYPE_CHECKING:
    from nnunet.evaluation.postprocessing import Postprocessing

DESCRIPTION = (
    "Keep the largest component of a structure in every mask of a folder, whoever predicted it. With --lbls "
    "the steps that raise the Dice are found first and written as postprocessing.json (give masks of cases "
    "that the model had not seen); with --postprocessing those of such a file are applied."
)
FILE = "postprocessing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostprocessOptions:
    """Where the masks lie, and what cleans them."""

    preds: Path
    """Folder of predicted masks: <case>.nii.gz, or another image format."""
    output: Path = field(metadata={"aliases": ("-o",)})
    """Folder for the cleaned masks, under their own names, and for a postprocessing.json found here."""
    lbls: Path | None = None
    """Folder of reference masks, or a raw dataset: find what helps; masks without one are cleaned too."""
    dataset: Path | None = None
    """dataset.json with the names of labels and regions; unset: the one in --lbls or above it."""
    postprocessing: Path | None = None
    """A postprocessing.json that was found before."""

    def __post_init__(self) -> None:
        if (self.lbls is None) == (self.postprocessing is None):
            raise UserError(
                "Give either --lbls, to find what helps, or --postprocessing with a file found before."
            )
        if self.output.resolve() == self.preds.resolve():
            raise UserError(f"--output {self.output} holds the masks themselves. Give another folder.")
        if self.postprocessing is not None and self.dataset is not None:
            raise UserError("--dataset names what --lbls shows; a file found before has its names. Drop it.")


def run(options: PostprocessOptions) -> int:
    """Write the cleaned masks; how many have changed. DatasetError names a mask that is unsound."""
    from data_preprocessing.volume_io import write_on_grid_of
    from nnunet.evaluation.pairing import masks_in
    from nnunet.evaluation.postprocessing import Postprocessing as Found
    from nnunet.evaluation.postprocessing import postprocess
    from scripts.mask_pairs import read_mask
    from scripts.model_postprocessing import describe_steps
    from utils.storage import read_record

    masks = masks_in(options.preds)
    if arrays := [path.name for path in masks.values() if path.suffix == ".npy"]:
        raise UserError(f"{options.preds / arrays[0]} is an array without a grid. Give masks as images.")
    if options.postprocessing is None:
        found = _find(options, masks)
    else:
        found = read_record(Found, options.postprocessing)
    kept = f"keeps the {describe_steps(found.steps)}" if found.steps else "removes nothing"
    say(f"Postprocessing {kept}.")
    changed = 0
    for path in progress(masks.values(), total=len(masks), label="Clean"):
        volume = read_mask(path)
        cleaned = postprocess(volume.voxels, found.steps)
        changed += cleaned is not volume.voxels
        write_on_grid_of(volume, options.output / path.name, cleaned)
    print(f"{len(masks)} masks in {options.output}, {changed} of them changed.")
    return changed


def _find(options: PostprocessOptions, masks: dict[str, Path]) -> Postprocessing:
    """The steps that raise the Dice of the masks with a reference, written beside the cleaned masks."""
    from nnunet.evaluation.pairing import pair_masks
    from nnunet.evaluation.postprocessing import MasksOfCase, find_postprocessing
    from scripts.mask_pairs import find_references, read_pair, rules_for
    from utils.storage import write_json

    assert options.lbls is not None  # checked with the options
    references = find_references(options.lbls, options.dataset)
    pairing = pair_masks(masks, references.masks, allow_missing=True)
    pairs = [pair for pair in pairing.pairs if pair.prediction is not None]
    rules = rules_for(references, "nan", 1)

    def read() -> Iterator[MasksOfCase]:
        for pair in pairs:
            truth, predicted = read_pair(pair, rules)
            yield MasksOfCase(case_id=pair.case_id, truth=truth, predicted=predicted)

    found = find_postprocessing(read, rules)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / FILE, found)
    before, after = (f"{dice:.4f}" for dice in (found.dice_before, found.dice_after))
    say(f"Dice of {len(pairs)} cases: {before} as they are, {after} cleaned. {options.output / FILE}")
    return found


def main() -> None:
    """Run from the command line."""
    run(parse(PostprocessOptions, sys.argv[1:], program="postprocess.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
