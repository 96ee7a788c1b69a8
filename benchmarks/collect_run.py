"""One training run as one JSON file: its options, its curve, its final validation.

python benchmarks/collect_run.py RESULTS_FOLDER OUT.json
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.run_log import read_log  # noqa: E402
from utils.storage import read_json, write_json  # noqa: E402

MACHINE_PATHS = ("data", "results", "ckpt_path", "input", "output")  # folders of one machine say nothing
PACKAGES = ("torch", "nvidia-dali-cuda120", "pytorch-lightning", "numpy")


def collect(results: Path) -> dict[str, Any]:
    """What a reader needs to judge the run and to repeat it."""
    lines = [line for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    options = dict(next(line["data"] for line in lines if line["step"] == "PARAMETER"))
    # Files are named without the folders of one machine.
    if "warm_start" in options:
        start = options["warm_start"]
        options["warm_start"] = {**start, "checkpoint": Path(start["checkpoint"]).name}
    options["origins"] = {name: Path(source).name for name, source in options.get("origins", {}).items()}
    final = read_json(results / "final_metrics.json")
    final.pop("checkpoint", None)
    return {
        "machine": machine(),
        "options": {name: value for name, value in options.items() if name not in MACHINE_PATHS},
        "curve": [
            {"epoch": line["step"][0], **line["data"]}
            for line in lines
            if isinstance(line["step"], list) and len(line["step"]) == 1
        ],
        "final_validation": final,
    }


def machine() -> dict[str, Any]:
    """Processor count and versions."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), collect(Path(sys.argv[1])))
