"""Preprocessed folder -> TFRecord files, each with the index that DALI needs, and a manifest.

    python data_preprocessing/convert2tfrec.py --data data/04_3d --results data/04_3d_tfrec --vpf 8

A record is one case, whole: X (bytes), X_shape (C, D, H, W), X_dtype (float16 or float32), Y (bytes,
int16), Y_shape (1, D, H, W), fname (the case's name), class_target (-1 where unknown), has_mask (0 where no
expert drew one; Y is then what preprocessing stored, or -1 throughout). Tables of foreground voxels and the
labels of a previous stage are not in it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data_preprocessing.tfrecord_format import MAX_PAYLOAD, count_bytes, example_pieces, record_pieces
from utils.command import run_command
from utils.contracts import OUTSIDE_LABEL, PreprocessedCase
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.prepared_folder import MANIFEST, list_prepared
from utils.run_log import progress, say
from utils.storage import atomic_file, read_array, read_record, write_json

FORMAT_VERSION = 1
MAX_ARRAY_BYTES = MAX_PAYLOAD - 2**16  # the rest is for names and shapes
RECORD_TYPES = ("float16", "float32")
FILES = "volumes-*-of-*.tfrecord"
REMEDY = "Run preprocess.py again for this folder."


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What is converted, where to, and how many cases share a file."""

    data: Path
    """Preprocessed folder, such as /data/04_3d."""
    results: Path
    """Folder for the TFRecord files; files of an earlier conversion there are replaced."""
    vpf: int = 1
    """Volumes per file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile:
    """One TFRecord file and its index."""

    file: str
    index: str
    num_bytes: int
    sha256: str
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordManifest:
    """All files of a conversion; written last, so its presence marks a complete one."""

    version: int
    dtype: str
    num_channels: int
    num_cases: int
    files: tuple[RecordFile, ...]


def convert(options: ConvertOptions) -> RecordManifest:
    """Write the records of all complete cases, sorted by name, `vpf` to a file.

    Every header is checked before the first file is written. UserError for a wrong option, DatasetError if
    the folder has no cases, mixes number types or channels, or holds an array that does not fit its record;
    every such case is named.
    """
    if options.vpf < 1:
        raise UserError(f"--vpf is {options.vpf}; a file holds at least one volume.")
    cases = list_prepared(options.data)
    if not cases:
        raise DatasetError(f"{options.data} has no preprocessed case. Run preprocess.py first.")
    dtype, num_channels = _checked_layout(cases)
    _clear(options.results)
    groups = [cases[start : start + options.vpf] for start in range(0, len(cases), options.vpf)]
    files = [
        _write_file(options.results, _file_name(place, len(groups)), group)
        for place, group in enumerate(progress(groups, total=len(groups), label="Writing TFRecord files"))
    ]
    manifest = RecordManifest(
        version=FORMAT_VERSION,
        dtype=dtype,
        num_channels=num_channels,
        num_cases=len(cases),
        files=tuple(files),
    )
    write_json(options.results / MANIFEST, manifest)
    return manifest


def _file_name(place: int, total: int) -> str:
    return f"volumes-{place:05d}-of-{total:05d}.tfrecord"


def _index_name(file: str) -> str:
    return f"{file}.idx"


def _checked_layout(cases: Sequence[PreprocessedCase]) -> tuple[str, int]:
    """Number type and channels that all cases share."""
    faults, layouts = [], set()
    for case in cases:
        try:
            image, label = _arrays_of(case)
        except DatasetError as error:
            faults.append(str(error))
            continue
        layouts.add((image.dtype.name, image.shape[0]))
        if (num_bytes := image.nbytes + label.nbytes) > MAX_ARRAY_BYTES:
            faults.append(
                f"Case {case.case_id} has {num_bytes} bytes, a record holds {MAX_ARRAY_BYTES}. "
                "Train this dataset from its .npy files."
            )
    if faults:
        raise DatasetError("\n".join(faults))
    if len(layouts) > 1:
        told = ", ".join(f"{dtype} with {channels} channels" for dtype, channels in sorted(layouts))
        raise DatasetError(f"{cases[0].image.parent} mixes images of {told}. {REMEDY}")
    return layouts.pop()


def _arrays_of(case: PreprocessedCase) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, D, H, W) and label (1, D, H, W) of a case, both still on disk."""
    image = read_array(case.image, mapped=True)
    if image.dtype.name not in RECORD_TYPES or image.ndim != 4 or image.shape[1:] != case.shape:
        raise DatasetError(
            f"{case.image} holds {image.dtype} {image.shape}, expected float16 or float32 of "
            f"(channels, *{case.shape}). {REMEDY}"
        )
    expected = (1, *case.shape)
    if case.label is None:
        return image, np.broadcast_to(np.int16(OUTSIDE_LABEL), expected)
    label = read_array(case.label, mapped=True)
    if label.dtype != np.int16 or label.shape != expected:
        raise DatasetError(
            f"{case.label} holds {label.dtype} {label.shape}, expected int16 {expected}. {REMEDY}"
        )
    return image, label


def _write_file(folder: Path, name: str, cases: Sequence[PreprocessedCase]) -> RecordFile:
    digest, position, index = hashlib.sha256(), 0, []
    with atomic_file(folder / name) as stream:
        for case in cases:
            pieces = record_pieces(example_pieces(_features(case)))
            for piece in pieces:
                stream.write(piece)
                digest.update(piece)
            length = count_bytes(pieces)
            index.append(f"{position} {length}\n")
            position += length
    with atomic_file(folder / _index_name(name)) as stream:
        stream.write("".join(index).encode())
    return RecordFile(
        file=name,
        index=_index_name(name),
        num_bytes=position,
        sha256=digest.hexdigest(),
        cases=tuple(case.case_id for case in cases),
    )


def _features(case: PreprocessedCase) -> dict[str, bytes | Sequence[int] | np.ndarray]:
    image, label = _arrays_of(case)
    return {
        "X": image,
        "X_shape": image.shape,
        "X_dtype": image.dtype.name.encode(),
        "Y": label,
        "Y_shape": label.shape,
        "fname": case.case_id.encode(),
        "class_target": [case.class_target],
        "has_mask": [int(case.foreground is not None)],
    }


def _clear(folder: Path) -> None:
    """Remove an earlier conversion, whole or killed, its manifest first; refuse any other folder."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            read_record(RecordManifest, manifest)
        except DatasetError as error:
            raise UserError(
                f"{folder} holds something else than TFRecord files ({error}). Choose another --results."
            ) from error
        manifest.unlink()
    for pattern in (FILES, f"{FILES}.idx", f".{FILES}.*tmp"):
        for path in folder.glob(pattern):
            path.unlink()


def main() -> None:
    """Parse the command line and convert."""
    start_s = time.perf_counter()
    options = parse(ConvertOptions, sys.argv[1:], program="convert2tfrec.py", description=__doc__ or "")
    manifest = convert(options)
    megabytes = sum(file.num_bytes for file in manifest.files) / 1e6
    say(
        f"{options.results}: {manifest.num_cases} cases in {len(manifest.files)} files, {megabytes:.1f} MB, "
        f"{time.perf_counter() - start_s:.1f} s."
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
