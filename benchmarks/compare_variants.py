"""Variants of one benchmark of ours, run in turn, as one JSON file: real patches beside synthetic ones.

python benchmarks/compare_variants.py --out FILE.json [--rounds 3] [--keys PATH ...] \\
    --variant "NAME=OPTIONS" --variant "NAME=OPTIONS" ... -- COMMON_OPTIONS_OF_SCRIPTS_BENCHMARK_PY

Each round runs every variant once; who goes first moves on from round to round. `--keys` are the dotted paths
of the compared figures, by default speed and processor time per patch: other programs lower the first, and
change the second less. The file says how many cores they used before each run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.compare_loaders import Run, figure_at, run_once, without_folders  # noqa: E402
from scripts.benchmark_record import machine_record  # noqa: E402
from utils.storage import write_json  # noqa: E402

SCHEMA = 1
KEYS = ("patches_per_s.median", "processor.ms_per_patch")


def order_of(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of round `number`: each is the first one once, then again."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def summary_of(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Per variant: ends and median of one figure, and its ratio to the last variant's in the same round."""
    reference = values[list(values)[-1]]
    return {
        name: {
            "min": min(found),
            "median": median(found),
            "max": max(found),
            "all": list(found),
            "ratio_to_last": median(one / other for one, other in zip(found, reference, strict=True)),
            "ratios": [one / other for one, other in zip(found, reference, strict=True)],
        }
        for name, found in values.items()
    }


def commands_of(variants: Sequence[str], start: Sequence[str]) -> dict[str, list[str]]:
    """The command of every variant NAME=OPTIONS, its options behind the common ones."""
    parts = [variant.partition("=") for variant in variants]
    return {name: [*start, *shlex.split(options)] for name, _, options in parts}


def values_of(runs: Mapping[str, Sequence[Run]], key: str) -> dict[str, list[float]]:
    """The figure at the dotted path of every run."""
    return {name: [figure_at(run["result"], key) for run in found] for name, found in runs.items()}


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that other programs keep busy while we wait."""
    return psutil.cpu_percent(interval=seconds) / 100 * (os.cpu_count() or 1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Variants of one benchmark, run in turn.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", nargs="+", default=KEYS, help="dotted paths of the compared figures")
    parser.add_argument("--variant", action="append", required=True, metavar="NAME=OPTIONS")
    parser.add_argument("--note", default="", help="what else has to be known about the machine")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- options of scripts/benchmark.py")
    return parser.parse_args()


def main() -> None:
    """Run all in turn; the file is written anew after every round."""
    chosen = parse_arguments()
    common = [option for option in chosen.options if option != "--"]
    start = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--json", *common]
    commands = commands_of(chosen.variant, start)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(chosen.rounds):
        for name in order_of(list(commands), number):
            others = busy_cores()
            runs[name].append(run_once(commands[name], chosen.keys[0]) | {"others_cores_before": others})
            print(number, name, round(runs[name][-1]["value"], 3), round(others, 2), flush=True)  # noqa: T201
        write_json(
            chosen.out,
            {
                "schema": SCHEMA,
                "machine": machine_record(None),
                "note": chosen.note,
                "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
                "commands": {name: without_folders(command) for name, command in commands.items()},
                "summary": {key: summary_of(values_of(runs, key)) for key in chosen.keys},
                "runs": runs,
            },
        )


if __name__ == "__main__":
    main()
