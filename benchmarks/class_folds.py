"""Cross-validated class answers beside what the lesion's volume alone says, on the same folds, paired.

python benchmarks/class_folds.py --data PREPARED_FOLDER --out FILE.json RESULTS_FOLDER [RESULTS_FOLDER ...]

One results folder per fold, of a dataset with two classes. A score is the mean over folds of the area under
the ROC curve within the fold: probabilities of different networks are never ranked against each other.
Intervals and differences come from resampled patients.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.collect_run import collect, machine  # noqa: E402
from nnunet.evaluation.bootstrap import Resampling, bootstrap_interval, of_drawn_cases  # noqa: E402
from nnunet.evaluation.class_probabilities import auc_of_score  # noqa: E402
from scripts.classifier_files import FOLDER, SCORES_SUFFIX  # noqa: E402
from utils.errors import DatasetError  # noqa: E402
from utils.prepared_folder import read_plan, read_prepared_case  # noqa: E402
from utils.run_log import say  # noqa: E402
from utils.storage import read_json, write_json  # noqa: E402

SCHEMA = 1
BRANCH, PREDICTED, TRUE = "branch", "predicted volume", "true volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One held-out case: its fold, patient and class, and what ranks it."""

    fold: int
    patient: str
    target: int
    scores: Mapping[str, float]
    dice: float


def read_fold_cases(results: Path, data: Path, fold: int) -> list[HeldOut]:
    """The held-out cases of one results folder; DatasetError for another number of classes than two."""
    plan = read_plan(data)
    if plan.num_classes != 2:
        raise DatasetError(f"{data} has {plan.num_classes} classes; a ROC curve needs two.")
    answers = {row["case"]: row for row in _table(results / "validation" / "predictions.csv")}
    lesion, positive = plan.target_names[-1], f"prob_{plan.class_names[1]}"
    cases = []
    for row in _table(results / "validation" / "metrics.csv"):
        if row["label"] != lesion:
            continue
        case = read_prepared_case(data, row["case"])
        scores = {
            BRANCH: float(answers[row["case"]][positive]),
            PREDICTED: float(row["volume_pred_ml"]),
            TRUE: float(row["volume_ref_ml"]),
        }
        cases.append(
            HeldOut(
                fold=fold,
                patient=case.patient_id,
                target=case.class_target,
                scores=scores,
                dice=float(row["Dice"]),
            )
        )
    return cases


def mean_fold_auc(cases: Sequence[HeldOut], name: str, drawn: np.ndarray | None = None) -> float:
    """The mean over folds of the area under a score's curve; NaN if one class is missing from a fold."""
    chosen = cases if drawn is None else [cases[index] for index in drawn]
    areas = []
    for fold in sorted({case.fold for case in cases}):
        inside = [case for case in chosen if case.fold == fold]
        target = np.array([case.target for case in inside])
        area = auc_of_score(target, np.array([case.scores[name] for case in inside])).value
        areas.append(float("nan") if area is None else area)
    return float(np.mean(areas))


def compare(cases: Sequence[HeldOut]) -> dict[str, Any]:
    """Areas with intervals, and the branch's lead over both volumes from the same resamples."""
    resampling = Resampling(groups=tuple(case.patient for case in cases))

    def interval(*names: str) -> dict[str, float]:
        def statistic(drawn: np.ndarray) -> float:
            first, *others = (mean_fold_auc(cases, name, drawn) for name in names)
            return first - sum(others)

        found = bootstrap_interval(of_drawn_cases(statistic), len(cases), resampling)
        return {"low": found.low, "high": found.high, "level": found.level}

    areas = {name: mean_fold_auc(cases, name) for name in (BRANCH, PREDICTED, TRUE)}
    return {
        "auc": {name: {"mean_of_folds": areas[name], "interval": interval(name)} for name in areas},
        "branch_minus": {
            name: {"difference": areas[BRANCH] - areas[name], "interval": interval(BRANCH, name)}
            for name in (PREDICTED, TRUE)
        },
    }


def fold_record(results: Path, cases: Sequence[HeldOut]) -> dict[str, Any]:
    """One fold's line: its areas, its Dice, its patients, and the classical classifiers' held-out areas."""
    areas = {name: mean_fold_auc(cases, name) for name in (BRANCH, PREDICTED, TRUE)}
    classical = {
        path.name.removesuffix(SCORES_SUFFIX): (read_json(path)["held_out"] or {}).get("auroc")
        for path in sorted((results / FOLDER).glob(f"*{SCORES_SUFFIX}"))
    }
    return {
        "num_cases": len(cases),
        "num_patients": len({case.patient for case in cases}),
        "dice": float(np.nanmean([case.dice for case in cases])),
        "auc": areas,
        "classical": classical,
        "macro_f1": read_json(results / "final_metrics.json")["classification"]["macro_f1"],
    }


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description="Class answers of all folds beside the volume alone.")
    parser.add_argument("--data", type=Path, required=True, help="the preprocessed folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", default="", help="what else has to be known about the runs")
    parser.add_argument("results", nargs="+", type=Path)
    chosen = parser.parse_args()
    folds = [read_fold_cases(folder, chosen.data, fold) for fold, folder in enumerate(chosen.results)]
    cases = [case for fold in folds for case in fold]
    dice = [case.dice for case in cases]
    result = compare(cases) | {
        "dice": float(np.nanmean(dice)),
        "folds": [fold_record(*pair) for pair in zip(chosen.results, folds, strict=True)],
    }
    about = {"schema": SCHEMA, "machine": machine(), "note": chosen.note}
    write_json(chosen.out, about | {"options": collect(chosen.results[0])["options"]} | result)
    for name, found in result["auc"].items():
        low, high = found["interval"]["low"], found["interval"]["high"]
        say(f"{name}: {found['mean_of_folds']:.3f} ({low:.3f} to {high:.3f})")
    for name, found in result["branch_minus"].items():
        low, high = found["interval"]["low"], found["interval"]["high"]
        say(f"branch - {name}: {found['difference']:+.4f} ({low:+.4f} to {high:+.4f})")
    say(f"Dice {result['dice']:.3f}")


if __name__ == "__main__":
    main()
