"""The story of the GPU suite: parts with time limits -> their figures, one JSON and one table."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.benchmark_record import MachineRecord, machine_record
from scripts.gpu_suite_figures import figures_of, result_of
from scripts.gpu_suite_parts import Part, Places, parts_of
from utils.command import run_command
from utils.errors import EnvironmentFault, UserError
from utils.options import parse
from utils.run_log import say
from utils.storage import write_json

DESCRIPTION = "Tests and benchmarks for a machine with a GPU, within a time limit."
ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
RESULT_FILE, TABLE_FILE, LOG_FILE = "gpu_suite.json", "gpu_suite.txt", "gpu_suite.log"
NOT_STARTED = -1
TIMED_OUT = 124  # as the command timeout says it
LEAST_S = 5.0  # with less time left a part is not started
GRACE_S = 5.0  # for a part to end after SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """Where the results go, and how much time there is."""

    out: Path
    """Folder for gpu_suite.json, gpu_suite.txt, gpu_suite.log, the tests' accounts and trace.json.gz."""
    small: bool = False
    """Tiny shapes and one part of each kind: tries the suite itself, without a GPU as well."""
    only: tuple[str, ...] = ()
    """Kinds of parts to run: tests, data, train, ...; none: all. Loader and training need data."""
    seconds: float = 520.0
    """Time for all parts; what does not fit is not started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a part; `rc` is 124 where its time ran out, -1 where it was not started."""

    name: str
    command: str
    rc: int
    seconds: float
    figures: dict[str, Any]
    result: dict[str, Any] | None  # the whole record, where the part prints one


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRecord:
    """The content of gpu_suite.json."""

    schema: int
    machine: MachineRecord
    small: bool
    seconds: float
    parts: tuple[Outcome, ...]


def run(options: SuiteOptions) -> SuiteRecord:
    """Run all parts and write the results; EnvironmentFault if not one of them succeeded."""
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="gpu_suite_") as work:
        places = Places(work=Path(work), out=options.out)
        for outcome in run_parts(chosen_parts(options, places), started + options.seconds, places):
            outcomes.append(outcome)
            record = SuiteRecord(
                schema=SCHEMA,
                machine=machine_record(gpu_name()),
                small=options.small,
                seconds=time.monotonic() - started,
                parts=tuple(outcomes),
            )
            # After every part: a machine that is taken away leaves what was measured.
            write_json(options.out / RESULT_FILE, record)
            (options.out / TABLE_FILE).write_text(table_of(record), encoding="utf-8")
    print(table_of(record), flush=True)
    if all(outcome.rc != 0 for outcome in outcomes):
        raise EnvironmentFault(f"No part of the suite succeeded. See {options.out / LOG_FILE}.")
    return record


def chosen_parts(options: SuiteOptions, places: Places) -> list[Part]:
    """The parts of the kinds that --only names; UserError where there is no such kind."""
    parts = parts_of(places, small=options.small)
    kinds = {part.kind for part in parts}
    if unknown := set(options.only) - kinds:
        raise UserError(f"--only knows the kinds {sorted(kinds)}, got {sorted(unknown)}.")
    return [part for part in parts if not options.only or part.kind in options.only]


def run_parts(parts: Sequence[Part], deadline: float, places: Places) -> Iterator[Outcome]:
    """The outcomes in the order of the parts: those that are not timed side by side, then one by one."""
    together = [part for part in parts if not part.is_timed]
    with ThreadPoolExecutor(max_workers=max(len(together), 1)) as pool:
        yield from pool.map(lambda part: run_part(part, deadline, places), together)
    for part in parts:
        if part.is_timed:
            yield run_part(part, deadline, places)


def run_part(part: Part, deadline: float, places: Places) -> Outcome:
    """Run one part within its limit and what is left until `deadline` (time.monotonic)."""
    limit_s = min(part.limit_s, deadline - time.monotonic())
    command = _portable(part.words, places)
    if limit_s < LEAST_S:
        return Outcome(name=part.name, command=command, rc=NOT_STARTED, seconds=0.0, figures={}, result=None)
    started = time.monotonic()
    rc, output, messages = _run(part.words, limit_s)
    seconds = time.monotonic() - started
    with (places.out / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(f"===== {part.name}: rc {rc}, {seconds:.1f} s\n$ {command}\n{output}\n{messages}\n")
    say(f"{part.name}: {'done' if rc == 0 else f'rc {rc}'}, {seconds:.1f} s")
    return Outcome(
        name=part.name,
        command=command,
        rc=rc,
        seconds=seconds,
        figures=figures_of(part, output, places),
        result=result_of(output),
    )


def _run(words: Sequence[str], limit_s: float) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; a part that runs too long ends with its children."""
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, messages = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, stop)
                output, messages = process.communicate(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                output, messages = process.communicate()
            return TIMED_OUT, output, messages
        return TIMED_OUT, "", "It did not end when it was killed."
    return process.returncode, output, messages


def _portable(words: Sequence[str], places: Places) -> str:
    """The command without the folders of one machine."""
    text = shlex.join(words).replace(sys.executable, "python")
    return text.replace(str(places.work), "WORK").replace(str(places.out), "OUT").replace(f"{ROOT}/", "")


def gpu_name() -> str | None:
    """What nvidia-smi calls the first GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().split("\n")[0] or None


def table_of(record: SuiteRecord) -> str:
    """One line per part: exit status, seconds, figures."""
    width = max(len(part.name) for part in record.parts)
    lines = [f"GPU: {record.machine.gpu}. All parts: {record.seconds:.0f} s.", ""]
    for part in record.parts:
        figures = ", ".join(f"{name} {_short(value)}" for name, value in part.figures.items())
        rc = {NOT_STARTED: "no time", TIMED_OUT: "too slow"}.get(part.rc, str(part.rc))
        lines.append(f"{part.name:<{width}}  {rc:>8}  {part.seconds:6.1f} s  {figures}")
    return "\n".join([*lines, ""])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Parse the command line and run."""
    run(parse(SuiteOptions, sys.argv[1:], program="gpu_suite_run.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
