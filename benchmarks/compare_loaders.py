"""Our loader beside a peer's, run in turn (ours peer, peer ours, ...), as one JSON file.

python benchmarks/compare_loaders.py --out FILE.json [--rounds 3] --peer "COMMAND" \\
    --key mp_patches_per_s.median -- OPTIONS_OF_SCRIPTS_BENCHMARK_PY

A command's last line that starts with `{` is its result. `--key` is the dotted path of the compared figure in
the peer's result, `--ours_key` in ours. A figure counts as better when it is larger.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.benchmark_record import machine_record  # noqa: E402
from utils.storage import write_json  # noqa: E402

OURS, PEER = "ours", "peer"
SCHEMA = 1
SHOWN_ERROR = 2000  # characters of a failed command's standard error

Run = dict[str, Any]


def result_of(stdout: str) -> dict[str, Any]:
    """The JSON object on the last line that starts with a brace; ValueError if there is none."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError("The command printed no line of JSON.")
    return json.loads(lines[-1])


def figure_at(result: Any, path: str) -> float:
    """The number at a dotted path such as `patches_per_s.median` or `runs.0.rate`."""
    for key in path.split("."):
        try:
            result = result[int(key)] if isinstance(result, list) else result[key]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            known = sorted(result) if isinstance(result, dict) else type(result).__name__
            raise ValueError(f"{path}: there is no {key!r}, only {known}.") from error
    return float(result)


def order_of(number: int) -> tuple[str, str]:
    """Who goes first changes from round to round, so that a machine that warms or tires favours neither."""
    return (OURS, PEER) if number % 2 == 0 else (PEER, OURS)


def run_once(command: list[str], key: str) -> Run:
    """One run of a command: its figure, its whole result, how long it took, how busy the machine was."""
    psutil.cpu_percent()  # the next call reports the time since this one
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-SHOWN_ERROR:]}")
    result = result_of(done.stdout)
    return {
        "value": figure_at(result, key),
        "wall_s": round(time.time() - started, 1),
        "machine_busy_percent": psutil.cpu_percent(),
        "result": result,
    }


def summary_of(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, ends and the ratio ours / peer: of the medians, and the range over the rounds."""
    values = {name: [run["value"] for run in runs[name]] for name in (OURS, PEER)}
    pairs = [ours / peer for ours, peer in zip(values[OURS], values[PEER], strict=False)]
    spreads = {
        name: {"min": min(found), "median": median(found), "max": max(found), "all": found}
        for name, found in values.items()
    }
    return {
        **spreads,
        "ratio_ours_to_peer": {
            "of_medians": median(values[OURS]) / median(values[PEER]),
            "rounds_min": min(pairs),
            "rounds_max": max(pairs),
        },
    }


def without_folders(command: list[str]) -> str:
    """The command with paths cut to their last name: folders of one machine say nothing elsewhere."""
    return shlex.join(Path(word).name if word.startswith("/") else word for word in command)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Our loader beside a peer's, run in turn.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", required=True, help="command of the peer")
    parser.add_argument("--key", required=True, help="dotted path of the figure in the peer's result")
    parser.add_argument("--ours_key", default="patches_per_s.median", help="the same in ours")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- options of scripts/benchmark.py")
    return parser.parse_args()


def main() -> None:
    """Run both in turn; the file is written anew after every round."""
    chosen = parse_arguments()
    options = [option for option in chosen.options if option != "--"]
    ours = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--mode", "loader", "--json", *options]
    commands = {OURS: (ours, chosen.ours_key), PEER: (shlex.split(chosen.peer), chosen.key)}
    runs: dict[str, list[Run]] = {OURS: [], PEER: []}
    for number in range(chosen.rounds):
        for name in order_of(number):
            runs[name].append(run_once(*commands[name]))
            print(number, name, round(runs[name][-1]["value"], 3), flush=True)  # noqa: T201
        summary = summary_of(runs)
        write_json(
            chosen.out,
            {
                "schema": SCHEMA,
                "machine": machine_record(None),
                "commands": {name: without_folders(command) for name, (command, _) in commands.items()},
                "keys": {name: key for name, (_, key) in commands.items()},
                "summary": summary,
                "runs": runs,
            },
        )
        print(json.dumps(summary["ratio_ours_to_peer"]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
