"""One way to compile a loop: without the interpreter lock, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` with Numba at its first call, in float32 where it computes in float32.

    Threads run it side by side (`nogil`). Sums may be reordered for vector units; NaN and infinity keep their
    meaning. The machine code is cached beside the source, or in the user's cache folder; where neither can be
    written (a read-only container without a home) it is compiled anew in each process.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder for its cache
        return numba.njit(**options)(function)
