"""The story of evaluation: predictions beside references -> overlap, classification -> tables and report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.ranges import check_jobs, check_number
from utils.run_log import say

COMMANDS = ("classification", "segmentation", "whole_organ")
DESCRIPTION = (
    "Score predicted masks and classes against their references. Or one comparison of two folders: "
    "evaluate.py classification|segmentation|whole_organ REFERENCE PREDICTIONS, each with its own --help."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What is compared with what, and where the results go."""

    preds: Path
    """Folder of predictions: <case>.nii.gz (or another image format), or .npy masks or probabilities;
    predictions.csv for classes."""
    lbls: Path
    """Folder of reference masks, or a raw dataset folder."""
    dataset: Path | None = None
    """dataset.json with the names of labels and classes (default: the one in --lbls or above it)."""
    results: Path | None = None
    """Folder for the results (default: --preds)."""
    splits: Path | None = None
    """splits_final.json: score only the validation cases of --fold."""
    fold: int = 0
    """Fold of --splits."""
    allow_missing: bool = False
    """Score a case without a prediction as a failure (Dice 0) instead of stopping."""
    empty: Literal["nan", "one"] = "nan"
    """Dice of a label that is empty in reference and prediction: nan (left out, as in nnU-Net) or one."""
    logs: Path | None = None
    """logs.json of the training, for its curve in the report."""
    seed: int = 0
    """Seed of the bootstrap intervals."""
    n_jobs: int = -1
    """Cases read at the same time; -1 is one per core."""

    def __post_init__(self) -> None:
        """UserError for numbers that no evaluation can have."""
        check_number("seed", self.seed, least=0)
        check_jobs(self.n_jobs)


def run(options: EvaluateOptions) -> Path:
    """Write summary.json, metrics.csv, classification_metrics.json and report.html; the path of the last."""
    # Imported here: --help must not wait for scikit-learn and matplotlib.
    from nnunet.evaluation.bootstrap import Resampling
    from nnunet.evaluation.pairing import masks_in, pair_masks
    from nnunet.evaluation.report import REPORT_FILE, ReportPage, read_curves, write_report
    from nnunet.evaluation.summary import summarise_segmentation, write_summaries
    from nnunet.evaluation.tables import write_overlap_table
    from scripts import evaluation_page as page
    from scripts.class_evaluation import notes_of, write_class_metrics
    from scripts.mask_pairs import find_references, measure_pairs, rules_for, select_fold

    references = select_fold(find_references(options.lbls, options.dataset), options.splits, options.fold)
    pairing = pair_masks(masks_in(options.preds), references.masks, allow_missing=options.allow_missing)
    rules = rules_for(references, options.empty, options.n_jobs)
    cases = measure_pairs(pairing.pairs, rules, options.n_jobs)

    patients = references.patients([case.case_id for case in cases])
    resampling = Resampling(seed=options.seed, groups=patients)
    segmentation = summarise_segmentation(cases, empty=options.empty, resampling=resampling)
    classes = page.score_classes(options.preds, references, cases, resampling)

    folder = options.results or options.preds
    write_summaries(folder, cases)
    write_overlap_table(folder / "metrics.csv", cases)
    if classes:
        write_class_metrics(folder, classes)
    title = references.dataset.name if references.dataset else options.lbls.name
    report = ReportPage(
        title=f"Evaluation of {title}",
        facts=page.report_facts(title, options.preds, options.lbls, cases),
        notes=(*page.report_notes(pairing), *(notes_of(classes) if classes else ())),
        segmentation=segmentation,
        classification=classes.summary if classes else None,
        volume_auroc=classes.volume_auroc if classes else None,
        volume=classes.volume if classes else None,
        overlays=page.draw_extremes(cases, pairing, references, rules),
        curves=read_curves(options.logs, page.CURVES) if options.logs else (),
    )
    write_report(folder / REPORT_FILE, report)
    for note in report.notes:
        say(note)
    page.print_result(segmentation, report.classification, folder / REPORT_FILE)
    return folder / REPORT_FILE


def main(argv: list[str] | None = None) -> None:
    """Parse and run: a comparison of two folders by its name, else the whole evaluation."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        from scripts.evaluate_folders import run_command_line

        run_command_line(arguments[0], arguments[1:])
        return
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"{arguments[0]!r} is no comparison; choose {', '.join(COMMANDS)}, or give --preds.")
    run(parse(EvaluateOptions, arguments, program="evaluate.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
