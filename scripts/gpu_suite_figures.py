"""What a part of the GPU suite printed or wrote -> the few figures that its line in the table shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scripts.benchmark_result import LoaderRecord, PredictRecord, TrainRecord, check_result
from scripts.gpu_suite_parts import Part, Places
from utils.errors import UserError
from utils.run_log import read_log
from utils.storage import read_json

RUN_LOG, FINAL_METRICS = "logs.json", "final_metrics.json"  # what a training writes
COUNTED = ("tests", "failures", "errors", "skipped")  # JUnit's attributes
EPOCH_FIGURES = ("speed/patches_per_s", "speed/waiting_percent", "train_s", "train/loss")

Figures = dict[str, Any]


def result_of(output: str) -> dict[str, Any] | None:
    """The JSON object on the last line that starts with a brace, if there is one."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    try:
        found = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def figures_of(part: Part, output: str, places: Places) -> Figures:
    """The figures of a part that ended, well or not; none where it left none."""
    if part.kind == "training":
        return _of_training(places.training)
    if part.kind in ("tests", "compiled"):
        account = places.tests if part.kind == "tests" else places.compiled_tests
        return _of_tests(account) or _of_lines(output)
    result = result_of(output)
    if result is None:
        return {}
    return _of_benchmark(result) if "mode" in result else result.get("figures", {})


def _of_benchmark(result: dict[str, Any]) -> Figures:
    try:
        record = check_result(result, source="the part")
    except UserError as fault:
        return {"not a result": str(fault)}
    if isinstance(record, LoaderRecord):
        return {
            "patches/s": record.patches_per_s.median,
            "ms per batch": record.ms_per_batch.mean,
            "host ms per patch": record.processor.ms_per_patch,
        }
    if not isinstance(record, TrainRecord | PredictRecord):
        return {"cases/s": record.cases_per_s}
    figures: Figures = {
        "patches/s": record.patches_per_s.median,
        "TFLOP/s": record.arithmetic.tflops,
        "of peak %": 100 * record.arithmetic.share_of_peak,
        "GPU MB": record.memory_mb.peak_allocated,
    }
    if isinstance(record, PredictRecord):
        seconds = [speed.seconds_per_volume for speed in record.whole_volumes]
        return figures | {
            "NVIDIA's img/s": record.nvidia.throughput_predict,
            "s per volume": seconds[0],
            "mirrored": seconds[1],
        }
    waiting = None if record.waiting_share is None else 100 * record.waiting_share
    return figures | {
        "ms per step": record.ms_per_step.mean,
        "NVIDIA's img/s": record.nvidia.throughput_train,
        "waiting %": waiting,
    }


def _of_tests(path: Path) -> Figures:
    """The sums over JUnit's suites."""
    if not path.is_file():
        return {}
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except ElementTree.ParseError:  # the tests were stopped while they wrote it
        return {}
    return {name: sum(int(suite.get(name, "0")) for suite in suites) for name in COUNTED}


def _of_lines(output: str) -> Figures:
    """What pytest -v said of each test until its time ran out."""
    words = {"passed": " PASSED", "failures": " FAILED", "errors": " ERROR"}
    lines = [line for line in output.splitlines() if "::" in line]
    found = {name: sum(word in line for line in lines) for name, word in words.items()}
    return found if any(found.values()) else {}


def _of_training(folder: Path) -> Figures:
    """The last epoch's speed, and the Dice of the final validation."""
    log, metrics = folder / RUN_LOG, folder / FINAL_METRICS
    figures: Figures = {}
    if log.is_file():
        epochs = [line for line in read_log(log) if line["type"] == "LOG" and len(line["step"]) == 1]
        if epochs:
            last = epochs[-1]["data"]
            figures = {"epochs": len(epochs)} | {name: last.get(name) for name in EPOCH_FIGURES}
    if metrics.is_file():
        figures["final Dice"] = read_json(metrics).get("dsc_mean")
    return figures
