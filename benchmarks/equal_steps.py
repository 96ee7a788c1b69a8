"""Our trainings beside a peer's of equal steps and batch: final Dice over several seeds, and the curves.

python benchmarks/equal_steps.py --out FILE.json --peer PEER.json ... --ours RESULTS_FOLDER ... [--note TEXT]

A peer's file is one JSON object with `iters`, `batch`, `seed` and `curve`, a list of {"iter", "dice"}; Dice
is the mean over labels and held-out cases, on the grid that the network sees, without mirroring.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.collect_run import collect, machine  # noqa: E402
from utils.errors import DatasetError  # noqa: E402
from utils.run_log import say  # noqa: E402
from utils.storage import read_json, write_json  # noqa: E402

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: what makes it comparable, and its Dice by step."""

    steps: int
    batch: int
    seed: int
    curve: tuple[tuple[int, float], ...]

    @property
    def dice(self) -> float:
        """After the last step."""
        return self.curve[-1][1]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        points = [{"step": step, "dice": dice} for step, dice in self.curve]
        return {"seed": self.seed, "dice": self.dice, "curve": points}


def peer_run(path: Path) -> Run:
    """The run of a peer's file."""
    found = read_json(path)
    curve = tuple((int(point["iter"]), float(point["dice"])) for point in found["curve"])
    return Run(steps=found["iters"], batch=found["batch"], seed=found["seed"], curve=curve)


def our_run(results: Path) -> Run:
    """The run of a results folder, by the validations during training."""
    found = collect(results)
    options = found["options"]
    per_epoch = options["steps_per_epoch"]
    curve = tuple(
        ((point["epoch"] + 1) * per_epoch, point["val/dsc"]) for point in found["curve"] if "val/dsc" in point
    )
    return Run(
        steps=options["epochs"] * per_epoch, batch=options["batch_size"], seed=options["seed"], curve=curve
    )


def compare(peer: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds, their difference; DatasetError for unequal steps or batch, or an unfinished run."""
    kinds = {(run.steps, run.batch) for run in (*peer, *ours)}
    if len(kinds) != 1:
        raise DatasetError(f"The runs differ in (steps, batch): {sorted(kinds)}. Only equal ones compare.")
    steps, batch = kinds.pop()
    for run in (*peer, *ours):
        if run.curve[-1][0] != steps:
            raise DatasetError(
                f"A run of seed {run.seed} was last scored at step {run.curve[-1][0]} of {steps}."
            )
    means = {
        name: statistics.mean(run.dice for run in runs) for name, runs in (("peer", peer), ("ours", ours))
    }
    return {
        "steps": steps,
        "batch": batch,
        "mean_dice": means,
        "difference": means["ours"] - means["peer"],
        "runs": {"peer": [run.to_json() for run in peer], "ours": [run.to_json() for run in ours]},
    }


def main(words: Sequence[str]) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer", type=Path, nargs="+", required=True)
    parser.add_argument("--ours", type=Path, nargs="+", required=True)
    parser.add_argument("--note", default="")
    chosen = parser.parse_args(words)
    found = compare([peer_run(path) for path in chosen.peer], [our_run(folder) for folder in chosen.ours])
    options = {k: v for k, v in collect(chosen.ours[0])["options"].items() if k not in ("seed", "origins")}
    means = found["mean_dice"]
    say(f"Dice: ours {means['ours']:.4f}, the peer's {means['peer']:.4f} ({found['difference']:+.4f})")
    write_json(
        chosen.out,
        {"schema": SCHEMA, "note": chosen.note, "machine": machine(), **found, "our_options": options},
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DatasetError as error:
        sys.exit(str(error))
