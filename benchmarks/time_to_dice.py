"""Validation Dice against training seconds, ours beside a peer's, the two commands run in turn.

python benchmarks/time_to_dice.py --results FOLDER --out FILE.json [--rounds 1] [--threshold 0.8] \\
    --peer "COMMAND" -- OPTIONS_OF_MAIN_PY

The peer's command prints one JSON object as its last line, with `curve`: a list of {"train_s", "dice"}. Ours
is main.py --exec_mode train; its curve is read from logs.json. Both clocks count training without validation.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.collect_run import collect, machine  # noqa: E402
from utils.storage import write_json  # noqa: E402

Curve = list[dict[str, float]]


def run_peer(command: str) -> dict[str, Any]:
    """The peer's result: the JSON object on its last line."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def run_ours(options: list[str], results: Path) -> dict[str, Any]:
    """Our curve and final full-volume validation of one training."""
    shutil.rmtree(results, ignore_errors=True)
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--exec_mode",
        "train",
        "--results",
        str(results),
        *options,
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    run = collect(results)
    curve = [
        {"train_s": round(point["train_s"], 1), "dice": round(point["val/dsc"], 4)}
        for point in run["curve"]
        if "val/dsc" in point
    ]
    return {"curve": curve, "options": run["options"], "final_validation": run["final_validation"]}


def seconds_to(curve: Curve, threshold: float) -> float | None:
    """Training seconds at the first measured point that reaches the threshold; None if none does."""
    return next((point["train_s"] for point in curve if point["dice"] >= threshold), None)


def main() -> None:
    """Run both in turn and write the result."""
    parser = argparse.ArgumentParser(description="Dice against training seconds, ours beside a peer's.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--peer", required=True)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    options = [option for option in chosen.options if option != "--"]
    runs: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
    jobs = {
        "peer": lambda: run_peer(chosen.peer),
        "ours": lambda: run_ours(options, chosen.results),
    }
    for number in range(chosen.rounds):
        for name in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            started = time.time()
            result = jobs[name]()
            result["seconds_to_threshold"] = seconds_to(result["curve"], chosen.threshold)
            result["wall_s"] = round(time.time() - started, 1)
            runs[name].append(result)
            print(name, result["seconds_to_threshold"], result["curve"][-1], flush=True)  # noqa: T201
            pairs = zip(runs["ours"], runs["peer"], strict=False)
            ratios = [
                round(ours["seconds_to_threshold"] / peer["seconds_to_threshold"], 3)
                for ours, peer in pairs
                if ours["seconds_to_threshold"] and peer["seconds_to_threshold"]
            ]
            summary = {
                "machine": machine(),
                "threshold": chosen.threshold,
                "ratio_ours_to_peer": ratios,
                "runs": runs,
            }
            write_json(chosen.out, summary)


if __name__ == "__main__":
    main()
