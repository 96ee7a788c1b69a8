"""The command that packs a trained model into one file for others: weights and JSON, nothing that runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.run_log import say
from utils.storage import file_hash

DESCRIPTION = (
    "Pack a trained model into one archive: the weights of the best checkpoint as safetensors, the averaged "
    "ones where the run kept them, with plan, architecture, classes, scores, postprocessing and classical "
    "classifiers as JSON. Of a cross-validation all finished folds, or those of --folds; of a cascade both "
    "stages."
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which model, and where to."""

    results: Path = Path("/results")
    """Results folder of a training or of a cross-validation."""
    folds: tuple[int, ...] = ()
    """Folds of a cross-validation; unset: all that are finished."""
    ckpt_path: Path | None = None
    """Checkpoint of a training; unset: the best one in --results."""
    previous_stage: Path | None = None
    """Results of the first stage of a cascade; unset: those that previous_stage.json names."""
    output: Path = Path("model.zip")
    """The archive to write."""
    overwrite: bool = False
    """Replace an archive that is there already."""


def run(options: ExportOptions) -> Path:
    """Write the archive and return its path; UserError and its kinds where that is impossible."""
    # Imported here: --help must not wait for torch.
    from scripts.members import results_of
    from scripts.model_packing import pack_models
    from scripts.run_options import RunOptions

    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} is there already; --overwrite to replace it.")
    checkpoint = options.ckpt_path
    results = options.results if checkpoint is None else results_of(checkpoint)
    chosen = RunOptions(
        results=results, folds=options.folds, ckpt_path=checkpoint, previous_stage=options.previous_stage
    )
    card = pack_models(chosen, options.output)
    names = ", ".join(model.folder or "one model" for model in card.models)
    cases = {case for model in card.models for case in model.card["training_cases"]}
    say(f"{options.output}: {names}, {sum(file.size for file in card.files) / 1e6:.1f} MB.")
    say(f"It names {len(cases)} training cases: make sure that these names may leave.")
    print(f"SHA-256 {file_hash(options.output)}")
    return options.output


def main() -> None:
    """Run from the command line."""
    run(parse(ExportOptions, sys.argv[1:], program="export_model.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
