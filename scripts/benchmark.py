"""The story of a benchmark: loader, training step, prediction or preprocessing -> speed, memory, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.benchmark_options import BenchmarkOptions, with_synthetic_data
from scripts.benchmark_refusals import refuse_impossible
from utils.command import run_command
from utils.options import parse
from utils.storage import to_plain, write_json

if TYPE_CHECKING:
    from scripts.benchmark_result import Result
    from scripts.process_team import Team

DESCRIPTION = "Measure how fast this machine makes patches, trains, predicts or preprocesses."


def result_file(mode: str) -> str:
    """The name of a result below --results."""
    return f"benchmark_{mode}.json"


def run(options: BenchmarkOptions) -> Result:
    """Measure, show the result, and return it; of several processes the first one shows it."""
    options = with_synthetic_data(options)
    refuse_impossible(options)
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)  # better refused now than after the measurement
    if options.mode == "preprocess":
        from scripts import benchmark_preprocess

        result = benchmark_preprocess.measure(options)
        _tell(options, result)
        return result
    # Imported here: --help must not wait for torch.
    from scripts.benchmark_processes import started_team

    with started_team(options) as team:
        result = _measure(options, team)
        if team.rank == 0:
            _tell(options, result)
    return result


def _tell(options: BenchmarkOptions, result: Result) -> None:
    from scripts.benchmark_report import show, write_log

    if options.results is not None:
        write_json(options.results / result_file(options.mode), result)
        write_log(options.results / options.logname, result)
    show(result, to_stderr=options.json)
    if options.json:
        print(json.dumps(to_plain(result), allow_nan=False), flush=True)


def _measure(options: BenchmarkOptions, team: Team) -> Result:
    if options.mode == "predict":
        from scripts import benchmark_predict

        return benchmark_predict.measure(options, team)
    if options.mode == "train":
        from scripts import benchmark_train

        return benchmark_train.measure(options, team)
    from scripts import benchmark_loader

    return benchmark_loader.measure(options, team)


def main() -> None:
    """Parse the command line and run."""
    run(parse(BenchmarkOptions, sys.argv[1:], program="benchmark.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
