"""A profiler's trace of training steps, and the operators that take most of the time."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_refusals import refuse_impossible
from utils.command import run_command
from utils.errors import UserError
from utils.options import parse

DESCRIPTION = "Profile training steps."
SHOWN = 25  # operators
MS_PER_US = 1e-3


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What is profiled, and where the trace goes."""

    trace: Path
    """File for the trace, as chrome://tracing and Perfetto read it; compressed where it ends in .gz."""
    steps: int = 20
    """Steps in the trace, behind the warm-up."""
    benchmark: BenchmarkOptions = BenchmarkOptions(mode="train")


def run(options: ProfileOptions) -> dict[str, Any]:
    """Write the trace, print the operators as one line of JSON, and return them."""
    benchmark = options.benchmark
    if benchmark.mode != "train" or options.steps < 1:
        raise UserError("Profiling takes --mode train and at least 1 of --steps.")
    if benchmark.gpus * benchmark.nodes > 1:
        raise UserError("Profiling looks at one process. Leave --gpus and --nodes away.")
    refuse_impossible(benchmark)
    # Imported here: --help must not wait for torch.
    import torch
    from torch.profiler import ProfilerActivity, profile

    from scripts.benchmark_network import batches_of, network_work
    from scripts.benchmark_train import training_step

    work = network_work(benchmark)
    step = training_step(work, benchmark)
    has_gpu = work.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
    with batches_of(work, benchmark.seed) as batches:
        for _ in range(benchmark.warmup):
            step(next(batches))
        if has_gpu:
            torch.cuda.synchronize()
        with profile(activities=activities) as profiler:
            for _ in range(options.steps):
                step(next(batches))
            if has_gpu:
                torch.cuda.synchronize()
    options.trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(options.trace))
    result = _result(profiler.key_averages(), options.steps, is_on_gpu=has_gpu)
    print(json.dumps(result), flush=True)
    return result


def _result(averages: Any, steps: int, *, is_on_gpu: bool) -> dict[str, Any]:
    """Milliseconds per step of the operators by their own time, on the GPU where there is one."""
    key = "self_device_time_total" if is_on_gpu else "self_cpu_time_total"
    rows = sorted(averages, key=lambda event: getattr(event, key), reverse=True)
    total_ms = sum(getattr(event, key) for event in rows) * MS_PER_US / steps
    operators = [
        {
            "name": event.key,
            "calls_per_step": event.count / steps,
            "ms_per_step": getattr(event, key) * MS_PER_US / steps,
        }
        for event in rows[:SHOWN]
    ]
    first = operators[0]
    return {
        "device": "cuda" if is_on_gpu else "cpu",
        "steps": steps,
        "ms_per_step": total_ms,
        "operators": operators,
        "figures": {"ms per step": total_ms, "most": first["name"], "its ms": first["ms_per_step"]},
    }


def main() -> None:
    """Parse the command line and run."""
    run(parse(ProfileOptions, sys.argv[1:], program="gpu_suite_profile.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
