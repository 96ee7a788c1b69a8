"""The story of a benchmark: loader, training step, prediction or preprocessing -> speed, memory, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.benchmark_options import BenchmarkOptions, refuse_impossible
from utils.command import run_command
from utils.options import parse
from utils.storage import to_plain, write_json

if TYPE_CHECKING:
    from scripts.benchmark_result import Result

DESCRIPTION = "Measure how fast this machine makes patches, trains, predicts or preprocesses."


def result_file(mode: str) -> str:
    """The name of a result below --results."""
    return f"benchmark_{mode}.json"


def run(options: BenchmarkOptions) -> Result:
    """Measure, show the result, and return it."""
    refuse_impossible(options)
    result = _measure(options)
    # Imported here: --help must not wait for torch.
    from scripts.benchmark_report import show, write_log

    if options.results is not None:
        write_json(options.results / result_file(options.mode), result)
        write_log(options.results, result)
    show(result, to_stderr=options.json)
    if options.json:
        print(json.dumps(to_plain(result), allow_nan=False), flush=True)
    return result


def _measure(options: BenchmarkOptions) -> Result:
    if options.mode == "preprocess":
        from scripts import benchmark_preprocess

        return benchmark_preprocess.measure(options)
    if options.mode == "predict":
        from scripts import benchmark_predict

        return benchmark_predict.measure(options)
    if options.mode == "train":
        from scripts import benchmark_train

        return benchmark_train.measure(options)
    from scripts import benchmark_loader

    return benchmark_loader.measure(options)


def main() -> None:
    """Parse the command line and run."""
    run(parse(BenchmarkOptions, sys.argv[1:], program="benchmark.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
