"""The run's record for machines (DLLogger lines) and its progress for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar

from utils.errors import DatasetError, EnvironmentFault, StorageFault
from utils.storage import to_plain

Item = TypeVar("Item")
Step = Literal["PARAMETER"] | int | Sequence[int]

PREFIX = "DLLL "
RUN_SUMMARY: tuple[int, ...] = ()  # step of the lines that hold for the whole run
PLAIN_LINES = 10  # progress lines where standard error is not a terminal


class RunLog:
    """Appends `DLLL {json}` lines to one file, the format that DLLogger's users parse.

    Only rank 0 writes; on other ranks every call does nothing. A line is handed to the system when it is
    logged and is safe on disk after `flush`. `echo` also prints through the dllogger package.
    """

    def __init__(self, path: Path, rank: int = 0, *, echo: bool = False) -> None:
        self._path = path
        self._start_s = time.monotonic()
        self._echo = _dllogger_printer() if echo and rank == 0 else None
        self._stream = _open_for_append(path) if rank == 0 else None

    def log(self, step: Step, data: Mapping[str, Any]) -> None:
        """Log named values: `step` is "PARAMETER", `[epoch]`, `[epoch, iteration]`, or `[]` for the summary.

        Tensors and arrays become numbers or lists. What strict JSON lacks becomes null with a mark beside it:
        `"<key>_isnan": true` or `"<key>_isinf": true`.
        """
        place = step if isinstance(step, str) else [step] if isinstance(step, int) else list(step)
        plain = plain_values(data)
        self._write({"type": "LOG", "step": place, "data": plain})
        if self._echo:
            self._echo.log(place, plain, 0)

    def metadata(self, metric: str, metadata: Mapping[str, Any]) -> None:
        """Describe a metric once: `unit`, `format` (":.3f"), `GOAL` ("MAXIMIZE"), `STAGE` ("TRAIN")."""
        plain = plain_values(metadata)
        self._write({"type": "METADATA", "metric": metric, "metadata": plain})
        if self._echo:
            self._echo.metadata(metric, plain)

    def flush(self) -> None:
        """Force everything logged so far onto the disk; call it once per epoch."""
        if self._stream:
            try:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            except OSError as error:
                raise StorageFault(f"{self._path} could not be written: {error.strerror}.") from error

    def close(self) -> None:
        """Flush and close; the log takes no more lines."""
        if self._stream:
            self.flush()
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, content: dict[str, Any]) -> None:
        if self._stream is None:
            return
        line = {
            "timestamp": str(time.time()),
            "datetime": str(datetime.now().astimezone()),
            "elapsedtime": str(time.monotonic() - self._start_s),
            **content,
        }
        try:
            self._stream.write(PREFIX + json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise StorageFault(f"{self._path} could not be written: {error.strerror}.") from error


def plain_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` as strict JSON values; a number that is NaN or infinite leaves a mark beside its null."""
    plain: dict[str, Any] = {}
    for key, value in data.items():
        # Tensors and NumPy values alike; asked by name, so that this file needs no torch.
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Mapping):
            plain[key] = plain_values(value)
            continue
        plain[key] = to_plain(value)
        if isinstance(value, float) and not math.isfinite(value):
            plain[f"{key}_isnan" if math.isnan(value) else f"{key}_isinf"] = True
    return plain


def read_log(path: Path) -> list[dict[str, Any]]:
    """The DLLogger lines of a file as dictionaries; a last line that a crash cut off is ignored."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except OSError as error:
        raise StorageFault(f"{path} cannot be read: {error.strerror}.") from error
    whole = text[: text.rfind("\n") + 1]
    entries = []
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line.startswith(PREFIX):
            continue
        try:
            entries.append(json.loads(line.removeprefix(PREFIX)))
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path} line {number} column {error.colno}: {error.msg}.") from error
    return entries


def _open_for_append(path: Path) -> IO[str]:
    """Line-buffered; a line that a crash cut off is removed first, or the next one would continue it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            _drop_cut_line(stream)
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise StorageFault(f"{path} cannot be opened for writing: {error.strerror}.") from error


def _drop_cut_line(stream: IO[bytes]) -> None:
    stream.seek(0)
    content = stream.read()
    if not content.endswith(b"\n"):
        stream.truncate(content.rfind(b"\n") + 1)


def _dllogger_printer() -> Any:
    """A dllogger that only prints; built without its global `init`, which refuses to run twice."""
    try:
        import dllogger  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EnvironmentFault(
            "Printing through DLLogger needs the dllogger package; install it or leave the option off. "
            "The log file has the same lines either way."
        ) from error
    return dllogger.Logger([dllogger.StdOutBackend(dllogger.Verbosity.DEFAULT)])


def say(message: str) -> None:
    """One line for the person at the terminal, on standard error: standard output is for results."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def progress(iterable: Iterable[Item], *, total: int, label: str) -> Iterator[Item]:
    """The items of `iterable`, showing how far it is: a bar on a terminal, else a line at each tenth."""
    if not sys.stderr.isatty():
        yield from _plain_progress(iterable, total, label)
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(iterable, description=label, total=total, console=Console(stderr=True))


def _plain_progress(iterable: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    start_s = time.monotonic()
    shown = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        tenths = min(done * PLAIN_LINES // max(total, 1), PLAIN_LINES)
        if tenths > shown:
            elapsed_s = time.monotonic() - start_s
            say(f"{label}: {100 * tenths // PLAIN_LINES} % ({done} of {total}), {elapsed_s:.1f} s")
            shown = tenths
