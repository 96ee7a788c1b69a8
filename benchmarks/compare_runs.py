"""Several trainings on the same held-out cases as one JSON file, Dice paired case by case with the first.

python benchmarks/compare_runs.py --out FILE.json [--note TEXT] FIRST=RESULTS_FOLDER NAME=RESULTS_FOLDER ...
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.collect_run import collect, machine  # noqa: E402
from nnunet.evaluation.bootstrap import bootstrap_interval  # noqa: E402
from utils.errors import DatasetError, UserError  # noqa: E402
from utils.run_log import say  # noqa: E402
from utils.storage import write_json  # noqa: E402

SCHEMA = 1
COUNTED = ("macro_f1", "balanced_accuracy", "accuracy")
Table = dict[str, dict[str, float]]  # label -> case -> Dice


def read_dice(results: Path) -> Table:
    """The Dice of every held-out case by label; DatasetError where the run has not scored its cases."""
    path = results / "validation" / "metrics.csv"
    if not path.is_file():
        raise DatasetError(f"{path} is missing: let the training end, its last step scores the cases.")
    table: Table = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["Dice"]:
                table.setdefault(row["label"], {})[row["case"]] = float(row["Dice"])
    return table


def dice_difference(table: Table, reference: Table, label: str) -> dict[str, Any]:
    """Mean Dice, and the mean difference to the reference with its interval over the cases of both.

    DatasetError where the two were not scored on the same cases.
    """
    ours, theirs = table[label], reference.get(label, {})
    if set(ours) != set(theirs):
        raise DatasetError(
            f"{label}: the runs were scored on {len(ours)} and {len(theirs)} cases, not on the same ones. "
            "Compare runs of one fold."
        )
    gaps = np.array([ours[case] - theirs[case] for case in sorted(ours)])
    interval = bootstrap_interval(lambda weights: weights @ gaps / weights.sum(axis=1), len(gaps))
    return {
        "mean": float(np.mean(list(ours.values()))),
        "difference": float(gaps.mean()),
        "difference_interval": [interval.low, interval.high],
    }


def summarise(name: str, run: Mapping[str, Any], table: Table, reference: Table) -> dict[str, Any]:
    """One row of the comparison."""
    final = run["final_validation"]
    row: dict[str, Any] = {"name": name}
    row["dice"] = {label: dice_difference(table, reference, label) for label in table}
    classes = final.get("classification")
    if classes is not None:
        row |= {score: classes[score] for score in COUNTED}
        row["macro_f1_interval"] = [classes["intervals"]["macro_f1"][end] for end in ("low", "high")]
        row["auroc"] = classes["auroc"]["value"]
        row["confusion"] = classes["confusion"]["counts"]
        row["constant_macro_f1"] = classes["best_baseline"]["macro_f1"]
        row["collapse"] = classes["collapse"]
    volume = final.get("volume_baseline")
    row["volume_alone_macro_f1"] = None if volume is None else volume["macro_f1"]
    return row | {"train_seconds": run["curve"][-1]["train_s"]}


def compare(folders: Mapping[str, Path]) -> dict[str, Any]:
    """The file's content: options that all share, and per run the others, its scores and its curve."""
    runs = {name: collect(folder) for name, folder in folders.items()}
    tables = {name: read_dice(folder) for name, folder in folders.items()}
    for run in runs.values():
        run["options"].pop("origins")  # where an option came from changes no result
    options = [run["options"] for run in runs.values()]
    shared = {
        option: value
        for option, value in options[0].items()
        if all(other.get(option) == value for other in options)
    }
    reference = next(iter(tables.values()))
    rows = []
    for name, run in runs.items():
        own = {option: value for option, value in run["options"].items() if option not in shared}
        rows.append({**summarise(name, run, tables[name], reference), "options": own, "curve": run["curve"]})
    return {"schema": SCHEMA, "machine": machine(), "shared_options": shared, "runs": rows}


def parse_run(text: str) -> tuple[str, Path]:
    """NAME=FOLDER; UserError for anything else."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"A run is named NAME=RESULTS_FOLDER, got {text!r}.")
    return name, Path(folder)


def main(words: Sequence[str]) -> None:
    """Compare, print a line per run, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", default="")
    parser.add_argument("runs", nargs="+")
    chosen = parser.parse_args(words)
    content = compare(dict(parse_run(text) for text in chosen.runs))
    for row in content["runs"]:
        scores = ", ".join(
            f"{label} {found['mean']:.3f} ({found['difference']:+.3f})"
            for label, found in row["dice"].items()
        )
        says = f" | macro-F1 {row['macro_f1']:.3f}" if "macro_f1" in row else ""
        say(f"{row['name']}: Dice {scores}{says}")
    write_json(chosen.out, {"note": chosen.note, **content})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, DatasetError) as error:
        sys.exit(str(error))
