"""The story of the choice: cross-validations, and pairs of them, compared on cases that no model had seen."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.errors import UserError
from utils.options import parse
from utils.run_log import say
from utils.storage import write_json

if TYPE_CHECKING:
    from scripts.best_candidates import Candidate, Scored

DESCRIPTION = (
    "Compare cross-validations (scripts/crossval.py) of one dataset, and the mean of each two of them, by "
    "the Dice of the held-out cases; find the postprocessing of the best and say how to predict with it. "
    "Probabilities that were not kept are computed again."
)
INFORMATION = "inference_information.json"
INSTRUCTIONS = "inference_instructions.txt"


@dataclass(frozen=True, kw_only=True)
class BestOptions:
    """What to compare, where to write."""

    results: tuple[Path, ...]
    """Results folders of the cross-validations to compare; of equally good ones the first is chosen."""
    data: tuple[Path, ...] = ()
    """Folder of the preprocessed folders, as --data of main.py: one for all, or one for each of --results;
    unset: where each was trained."""
    folds: tuple[int, ...] = ()
    """Compare on the held-out cases of these folds; unset: of all, each of which has to be trained."""
    pairs: bool = True
    """Try the mean of every two of them as well."""
    output: Path | None = None
    """Folder for the masks of the pairs, inference_information.json, inference_instructions.txt and, with
    --folds, the postprocessing; unset: best_configuration beside the first of --results."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where probabilities are computed that were not kept; auto: a GPU where there is one."""


def run(options: BestOptions) -> Path:
    """Compare, print the ranking and the command, and return the path of inference_information.json."""
    # Imported here: --help must not wait for torch.
    from scripts.best_candidates import postprocess_best, read_candidate, refuse_other_cases, score_candidate
    from scripts.best_pairs import pair_of, reason_not_to_pair

    if len(options.data) not in (0, 1, len(options.results)):
        raise UserError(
            f"--data should be one folder, or one for each of the {len(options.results)} --results, got "
            f"{len(options.data)}."
        )
    folder = options.output or options.results[0].resolve().parent / "best_configuration"
    data = options.data * len(options.results) if len(options.data) == 1 else options.data
    places = data or (None,) * len(options.results)
    candidates = [
        read_candidate(results, place, options.folds, options.device)
        for results, place in zip(options.results, places, strict=True)
    ]
    refuse_other_cases(candidates)
    scored = [_told(score_candidate(candidate)) for candidate in candidates]
    for i, j in itertools.combinations(range(len(candidates)), 2) if options.pairs else ():
        first, second = candidates[i], candidates[j]
        if reason := reason_not_to_pair(first, second):
            say(f"{first.name} and {second.name} are no pair: {reason}.")
        else:
            scored.append(_told(score_candidate(pair_of(first, second, folder / f"pair_{i}_{j}"))))
    best = max(scored, key=lambda one: one.dice)  # of equally good ones, the first
    found = postprocess_best(best.candidate, folder)
    command = prediction_command(best.candidate, found.file, options.folds)
    write_json(folder / INFORMATION, _information(scored, best, options, found.record | {"command": command}))
    (folder / INSTRUCTIONS).write_text(f"{command}\n", encoding="utf-8")
    print(f"Best: {best.candidate.name}, Dice {best.dice:.4f} over {best.num_cases} held-out cases.")
    print(f"Predict with:\n{command}")
    print(f"{folder / INFORMATION} is written.")
    return folder / INFORMATION


def prediction_command(candidate: Candidate, postprocessing: Path, folds: Sequence[int]) -> str:
    """The command that predicts new scans as the held-out cases were; INPUT and OUTPUT stay open."""
    from scripts.crossval_words import prediction_words

    members = [str(results.resolve()) for results in candidate.results]
    source = ["--results", *members] if len(members) == 1 else ["--members", *members]
    chosen = ["--folds", *map(str, folds)] if folds else []
    words = ["python", "main.py", "--exec_mode", "predict", *source, *chosen]
    words += ["--postprocessing", str(postprocessing.resolve()), *prediction_words(candidate.options)]
    return f"{shlex.join(words)} -i INPUT -o OUTPUT"


def _told(scored: Scored) -> Scored:
    f1 = "" if scored.macro_f1 is None else f", macro-F1 {scored.macro_f1:.4f}"
    print(f"{scored.candidate.name}: Dice {scored.dice:.4f}{f1} over {scored.num_cases} held-out cases")
    return scored


def _information(
    scored: Sequence[Scored], best: Scored, options: BestOptions, found: dict[str, Any]
) -> dict[str, Any]:
    """The content of inference_information.json, under nnU-Net's names where it has one."""
    return {
        "dataset_name_or_id": best.candidate.pool.plan.dataset,
        "considered_models": options.results,
        "ensembling_allowed": options.pairs,
        "folds": best.candidate.pool.folds,
        "all_results": {one.candidate.name: one.dice for one in scored},
        "macro_f1": {one.candidate.name: one.macro_f1 for one in scored},
        "num_cases": best.num_cases,
        "best_model_or_ensemble": {
            "name": best.candidate.name,
            "selected_model_or_models": best.candidate.results,
            "result_on_crossval_pre_pp": best.dice,
            "result_on_crossval_post_pp": found["dice_after"],
            "postprocessing_file": found["file"],
        },
        "command": found["command"],
    }


def main() -> None:
    """Run from the command line."""
    run(parse(BestOptions, sys.argv[1:], program="best_configuration.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
