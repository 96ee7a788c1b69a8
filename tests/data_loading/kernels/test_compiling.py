"""Compiled loops work where nothing can be cached, and run beside the interpreter."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_loading.kernels.compiling import compiled

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import numpy as np
from data_loading.kernels.half import copy_halves
target, zero = np.zeros((1, 1, 1, 2), np.float32), np.zeros(3, np.int64)
bits = np.array([1.5, -2.0], np.float16).view(np.uint16).reshape(1, 1, 1, 2)
copy_halves(bits, target, zero, zero, np.array([1, 1, 2]))
print(target.ravel().tolist())
"""


def run_program(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "environment",
    [{"HOME": "/proc/none"}, {"NUMBA_CACHE_DIR": "/proc/none"}, {}],
    ids=["home cannot be written", "numba's folder cannot be written", "no home is named"],
)
def test_without_a_writable_cache_the_loops_are_compiled_all_the_same(environment: dict[str, str]) -> None:
    assert run_program(**environment) == "[1.5, -2.0]"


def test_the_cache_is_named_after_the_state_of_all_kernels(tmp_path: Path) -> None:
    run_program(XDG_CACHE_HOME=str(tmp_path))
    folders = list((tmp_path / "multitask-nnunet-dali").iterdir())
    assert len(folders) == 1
    assert any(folders[0].rglob("*copy_halves*.nbi"))


@compiled
def _spin(steps: int) -> float:
    total = 0.0
    for step in range(steps):
        total += np.sqrt(step)
    return total


def test_the_interpreter_is_free_while_a_loop_runs() -> None:
    """Counted in turns of the interpreter, not in seconds: a locked one could not take a single turn."""
    _spin(1)
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        loop = pool.submit(_spin, 300_000_000)
        turns = 0
        while not loop.done():
            turns += 1
            time.sleep(0.001)
    assert time.perf_counter() > started
    assert turns > 20
