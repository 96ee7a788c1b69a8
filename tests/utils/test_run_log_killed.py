"""A log of a run that was killed holds whole lines only, with and without the dllogger package."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.run_log import RunLog, read_log

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import itertools, sys
from pathlib import Path
from utils.run_log import RunLog
log = RunLog(Path(sys.argv[1]), echo=sys.argv[2] == "echo")
log.log("PARAMETER", {"task": "01"})
for step in itertools.count():
    log.log([0, step], {"train/loss": 1.0, "text": "x" * 200})
    if step == 200:
        print("enough", flush=True)
"""
DLLOGGER = """
class Verbosity: DEFAULT = 0
class StdOutBackend:
    def __init__(self, verbosity): pass
class Logger:
    def __init__(self, backends): pass
    def log(self, step, data, verbosity): pass
    def metadata(self, metric, metadata): pass
"""


@pytest.mark.parametrize("package", ["echo", "absent"])
def test_a_killed_run_leaves_whole_lines(package: str, tmp_path: Path) -> None:
    path = tmp_path / "logs.json"
    (tmp_path / "dllogger.py").write_text(DLLOGGER, encoding="utf-8")
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}" if package == "echo" else str(ROOT)}
    words = [sys.executable, "-c", ENDLESS, str(path), package]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "enough\n"
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # The system may cut the write in which it was killed; every line before that one is whole.
    entries = [json.loads(line.removeprefix("DLLL ")) for line in lines if line.endswith("\n")]
    assert len(lines) - len(entries) <= 1
    steps = [entry["step"] for entry in entries[1:]]
    assert steps == [[0, step] for step in range(len(steps))]
    assert len(steps) > 200
    assert all(
        set(entry) == {"timestamp", "datetime", "elapsedtime", "type", "step", "data"} for entry in entries
    )


def test_the_next_run_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "logs.json"
    with RunLog(path) as log:
        log.log([0], {"a": 1})
    with path.open("a", encoding="utf-8") as stream:
        stream.write('DLLL {"timestamp": "17')
    with RunLog(path) as log:
        log.log([1], {"a": 2})
    text = path.read_text(encoding="utf-8")
    assert text.count("DLLL ") == text.count("\n") == 2
    assert [entry["data"] for entry in read_log(path)] == [{"a": 1}, {"a": 2}]
