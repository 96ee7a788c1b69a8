"""One way to compile a loop: without the interpreter lock, kept on disk between runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config

CACHE_VARIABLE = "NUMBA_CACHE_DIR"  # Numba's own; where it is set, it holds


def _cache_folder() -> Path:
    """A folder for this state of all kernels: Numba alone would miss a change in another file's function."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "multitask-nnunet-dali" / f"kernels-{state}"


if CACHE_VARIABLE not in os.environ:
    config.CACHE_DIR = str(_cache_folder())  # pyright: ignore[reportAttributeAccessIssue]


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` with Numba at its first call, in float32 where it computes in float32.

    Threads run it side by side (`nogil`). Sums may be reordered for vector units; NaN and infinity keep their
    meaning. The machine code is kept in the user's cache folder; where that cannot be written (a container
    without a home) it is compiled anew in each process, which takes some seconds.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # Numba found no folder for its cache
        return numba.njit(**options)(function)
