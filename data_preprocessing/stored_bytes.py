"""The bytes of an image file: a plain file of a sane size, decompressed to its end, its checksum verified."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError

from data_preprocessing.faults import VolumeError
from data_preprocessing.nifti_header import MAX_HEADER_BYTES, MAX_VOXEL_BYTES
from data_preprocessing.volume import refuse

GZIP_MAGIC = b"\x1f\x8b"
ANY_WINDOW = 47  # zlib's number for: 32 KiB window, gzip or zlib header, checksum verified
TRAILING_SLACK = 2**20  # bytes that may follow the voxels
FOREIGN_CONTENT = {
    b"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull`",
    b"<!doctype": "an HTML page; the download failed",
    b"<html": "an HTML page; the download failed",
    b"<?xml": "an XML text; the download failed",
}


def read_plain_file(path: Path) -> bytes:
    """All bytes of a plain file; see `check_plain_file` for what is refused."""
    check_plain_file(path)
    with errors_named(path):
        content = path.read_bytes()
    refuse_foreign(content[:256], path)
    return content


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a plain file."""
    check_plain_file(path)
    with errors_named(path), path.open("rb") as stream:
        start = stream.read(count)
    refuse_foreign(start[:256], path)
    return start


def refuse_foreign(start: bytes, path: Path) -> None:
    """Refuses what is no image at all: Git LFS pointers and the pages of failed downloads."""
    text = start.lstrip().lower()
    for mark, meaning in FOREIGN_CONTENT.items():
        if text.startswith(mark):
            raise refuse("E202", path, f"the file is {meaning}.", "fetch the image itself.")


def check_plain_file(path: Path) -> None:
    """Refuses folders, broken links, devices and pipes (a pipe would hang), empty and oversized files."""
    with errors_named(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise refuse("E201", path, "this is not a plain file.", "give the path of an image file.")
    if status.st_size == 0:
        raise refuse("E201", path, "the file is empty (0 bytes).", "copy the file again.")
    if status.st_size > MAX_VOXEL_BYTES + MAX_HEADER_BYTES:
        what = f"the file has {status.st_size} bytes, the limit is {MAX_VOXEL_BYTES + MAX_HEADER_BYTES}."
        raise refuse("E207", path, what, "crop or downsample the volume first.")


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turns what the system or the decompressor says into an error that names the file."""
    try:
        yield
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}."
        raise refuse("E201", path, what, "check the path and its permissions.") from error
    except IsalError as error:  # pyright: ignore[reportGeneralTypeIssues]  its stub names no class
        raise refuse(
            "E204",
            path,
            f"the compressed data are damaged ({error}).",
            "copy or download the file again; `gzip -t FILE` must succeed for a .gz file.",
        ) from error


def inflate(content: bytes, needed: int, path: Path) -> bytes:
    """All gzip members (or one zlib stream), to the end, so that a cut and a wrong checksum are seen.

    Stops above `needed` plus the slack: a small file that unpacks to terabytes costs no memory.
    """
    limit = needed + TRAILING_SLACK + 1
    parts: list[bytes] = []
    held = 0
    while (content.startswith(GZIP_MAGIC) or not parts) and held < limit:
        stream = isal_zlib.decompressobj(wbits=ANY_WINDOW)
        with errors_named(path):
            parts.append(stream.decompress(content, limit - held))
        held += len(parts[-1])
        if not stream.eof and held < limit:
            raise cut_off(path, needed, held)
        content = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_voxel_bytes(shape: tuple[int, ...], itemsize: int, path: Path) -> int:
    """Bytes that the voxels need; refuses what no memory should be asked for."""
    needed = math.prod(shape) * itemsize
    if min(shape) < 1 or needed > MAX_VOXEL_BYTES:
        raise refuse(
            "E207" if needed > MAX_VOXEL_BYTES else "E206",
            path,
            f"the shape {shape} needs {needed} bytes; each axis needs 1 voxel or more, and the limit is "
            f"{MAX_VOXEL_BYTES} bytes.",
            "check the header, or crop or downsample the volume first.",
        )
    return needed


def voxels_of(
    content: bytes | memoryview, voxel_type: np.dtype, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    """The voxels at the start of `content`, the first axis fastest; its length must fit."""
    needed = check_voxel_bytes(shape, voxel_type.itemsize, path)
    check_length(len(content), needed, path)
    return np.frombuffer(content, voxel_type, count=math.prod(shape)).reshape(shape, order="F")


def check_length(held: int, needed: int, path: Path) -> None:
    """Refuses a file that holds fewer bytes than its header promises, or far more."""
    if held < needed:
        raise cut_off(path, needed, held)
    if held > needed + TRAILING_SLACK:
        raise refuse(
            "E207",
            path,
            f"more than {TRAILING_SLACK} bytes follow the {needed} bytes that the header promises.",
            "check the dimensions and the voxel type in the header.",
        )


def cut_off(path: Path, needed: int, held: int) -> VolumeError:
    """The error for a file that ends too early."""
    return refuse(
        "E203",
        path,
        f"the file is cut off: the header promises {needed} bytes, the file holds {held}.",
        "copy the file again; for a .gz file `gzip -t FILE` must succeed.",
    )
