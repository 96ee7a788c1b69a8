"""Records as JSON and arrays as .npy: atomic, versioned, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from utils.errors import DatasetError, StorageFault

Record = TypeVar("Record")

MAX_JSON_BYTES = 256 * 2**20  # a larger "JSON" is no description of a dataset


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` whole, or not at all.

    Written beside the target, flushed to disk, then renamed: nobody ever sees half of it, not even after a
    crash.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise StorageFault(f"{path.parent} cannot be written: {error.strerror}.") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StorageFault(
            f"{path} could not be written: {error.strerror or error}. The old file is intact."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy format 1.0, little-endian, C order: the only form that DALI reads."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    with atomic_file(path) as stream:
        np.lib.format.write_array(stream, plain, version=(1, 0), allow_pickle=False)


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array at `path`; `mapped` leaves the voxels on disk until they are used."""
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path} is not a readable .npy file ({error}). Run preprocess.py again."
        ) from error


def to_plain(value: Any) -> Any:
    """Records, tuples, paths and NumPy numbers as dict, list, str, int, float, bool or None.

    NaN and infinity become None: strict JSON has neither.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def from_plain(record: type[Record], data: Any, *, source: str = "the data") -> Record:
    """The `record` that `to_plain` made `data` from; errors on unknown or missing keys name `source`."""
    return _restore(record, data, source)


def _restore(kind: Any, data: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _restore_record(kind, data, where)
    if origin is tuple:
        return _restore_tuple(inner, data, where)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _restore(next(item for item in inner if item is not type(None)), data, where)
    if kind in (int, float, str, bool, Path):
        return _restore_scalar(kind, data, where)
    return data


def _restore_scalar(kind: Any, data: Any, where: str) -> Any:
    """A plain value of exactly the type `kind`; a float was written as null where it was not finite."""
    if kind is float and data is None:
        return float("nan")
    accepted = {float: (int, float), Path: (str,)}.get(kind, (kind,))
    if type(data) not in accepted:
        raise DatasetError(f"{where} should be of type {kind.__name__}, got {data!r}.")
    return kind(data)


def _restore_tuple(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise DatasetError(f"{where} should be a list, got {data!r}.")
    kinds = [inner[0]] * len(data) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
    if len(kinds) != len(data):
        raise DatasetError(f"{where} should have {len(kinds)} entries, got {len(data)}.")
    pairs = zip(kinds, data, strict=True)
    return tuple(_restore(kind, value, f"{where}[{i}]") for i, (kind, value) in enumerate(pairs))


def _restore_record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise DatasetError(
            f"{where} should be an object with the fields of {kind.__name__}, got {type(data).__name__}."
        )
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise DatasetError(f"{where} has unknown keys {unknown}; {kind.__name__} has {sorted(hints)}.")
    required = {f.name for f in fields(kind) if f.default is f.default_factory}
    missing = sorted(required - set(data))
    if missing:
        raise DatasetError(f"{where} lacks the keys {missing} of {kind.__name__}.")
    return kind(**{name: _restore(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def write_json(path: Path, value: Any) -> None:
    """Write a record or plain value as strict, readable JSON."""
    text = json.dumps(to_plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as stream:
        stream.write((text + "\n").encode())


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def read_json(path: Path) -> Any:
    """The plain value in `path`; refuses duplicate keys, NaN, and files too large to be a description."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DatasetError(
                f"{path} has {path.stat().st_size} bytes, the limit for JSON is {MAX_JSON_BYTES}."
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except OSError as error:
        raise StorageFault(f"{path} cannot be read: {error.strerror}.") from error
    return parse_json(content, source=str(path))


def parse_json(content: bytes, *, source: str) -> Any:
    """The plain value in `content`; DatasetError in the name of `source` where it is not strict JSON."""
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = error.doc.split("\n")[error.lineno - 1][:80]
        raise DatasetError(
            f"{source} line {error.lineno} column {error.colno}: {error.msg}; the line is {line!r}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not valid JSON: {error}.") from error


def read_record(record: type[Record], path: Path) -> Record:
    """The `record` stored in the JSON file at `path`."""
    return from_plain(record, read_json(path), source=str(path))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
