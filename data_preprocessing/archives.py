"""A .tar or .tar.gz from elsewhere -> a dataset folder; all members are checked before one is written."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from utils.errors import DatasetError, StorageFault, UserError
from utils.prepared_folder import DATASET
from utils.run_log import progress

GZIP_MAGIC = b"\x1f\x8b"
READ_LIMIT = 2**20  # bytes; only a forged header makes tarfile ask for more in one go
PADDING_LIMIT = 2**24  # bytes of zeros behind the end mark; tar writes at most a block of its own
FINDER_PREFIX = "._"  # what macOS adds to every file of an archive
UNPACKING = ".unpacking"  # ending of the folder that the files land in first
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may be at most; the free disk space is a further limit."""

    max_members: int = 100_000
    max_bytes: int = 2**38  # 256 GiB; the largest Decathlon task has 27 GB
    max_ratio: float = 200.0  # unpacked over packed size


@dataclass(frozen=True, slots=True)
class _ShortReads:
    """A stream that refuses to read much at once: a forged header would fill the memory."""

    stream: IO[bytes]

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= READ_LIMIT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def unpack_dataset(
    archive: Path, folder: Path, *, root: str, limits: ArchiveLimits | None = None, overwrite: bool = False
) -> Path:
    """Unpack `archive`, whose members all lie below `root`/, and return `folder`/`root`.

    The folder appears whole or not at all; one of that name is left alone (UserError) unless `overwrite`,
    which replaces it at the very end. Files of the macOS Finder (`._*`) are left out. DatasetError, before
    anything is written, for absolute paths, `..`, links, devices, sparse files, a name that occurs twice
    (upper and lower case alike), members outside `root`, more members or bytes than `limits`, and a damaged
    or cut off archive; also if there is no dataset.json. StorageFault if the disk is too small.
    """
    target = folder / root
    if _exists(target) and not overwrite:
        raise UserError(f"{target} is there already; --overwrite to replace it.")
    with _opened(archive, folder) as (stream, tar):
        members = _checked_members(archive, stream, tar, root, limits or ArchiveLimits())
        folder.mkdir(parents=True, exist_ok=True)
        refuse_small_disk(folder, sum(member.size for member in members))
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{root}.", suffix=UNPACKING))
        try:
            _extract(tar, members, temporary)
            if not (temporary / root / DATASET).is_file():
                raise DatasetError(f"{archive} holds no {root}/{DATASET}: it is no dataset of that task.")
            install_folder(temporary / root, target, aside=temporary / "replaced")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def remove_leftovers(folder: Path, root: str) -> None:
    """Remove what a killed `unpack_dataset` left behind; no other may be at work on the same folder."""
    for leftover in folder.glob(f".{root}.*{UNPACKING}"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _opened(archive: Path, folder: Path) -> Iterator[tuple[IO[bytes], tarfile.TarFile]]:
    """The stream of the .tar and its reader; what goes wrong in either is told with the file's name."""
    try:
        with archive.open("rb") as raw:
            is_packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if is_packed else raw)
            with tarfile.open(
                fileobj=cast("IO[bytes]", _ShortReads(stream)), mode="r:", errors="strict"
            ) as tar:
                yield stream, tar
    except DAMAGED as error:
        raise DatasetError(
            f"{archive} is no whole .tar or .tar.gz ({error or type(error).__name__}). Get it again."
        ) from error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise StorageFault(
            f"{archive} could not be unpacked into {folder}: {error.strerror or error}{place}."
        ) from error


def _checked_members(
    archive: Path, stream: IO[bytes], tar: tarfile.TarFile, root: str, limits: ArchiveLimits
) -> list[tarfile.TarInfo]:
    """All members to write, in the archive's order; reads the whole archive and writes nothing."""
    packed_bytes = archive.stat().st_size
    kinds: dict[str, bool] = {}  # folded name -> whether it is a folder
    wanted, total = [], 0
    for number, member in enumerate(tar, start=1):
        total += member.size
        if number > limits.max_members:
            raise _refusal(archive, f"has more than {limits.max_members} members")
        if total > min(limits.max_bytes, limits.max_ratio * packed_bytes):
            raise _refusal(
                archive,
                f"unpacks to more than {total} bytes from {packed_bytes}; at most {limits.max_ratio:g} times "
                f"its size and {limits.max_bytes} bytes are accepted",
            )
        if fault := _fault_of(member, root):
            raise _refusal(archive, f"holds {member.name!r}, {fault}")
        path = PurePosixPath(member.name)
        if any(part.startswith(FINDER_PREFIX) for part in path.parts) or not path.parts:
            continue
        folded = _folded(path)
        if folded in kinds:
            raise _refusal(archive, f"holds {member.name!r} twice (upper and lower case count as equal)")
        kinds[folded] = member.isdir()
        wanted.append(member)
    for member in wanted:
        if any(not kinds.get(_folded(above), True) for above in PurePosixPath(member.name).parents):
            raise _refusal(archive, f"holds {member.name!r} below something that is no folder")
    _refuse_cut_off(stream, tar)
    return wanted


def _fault_of(member: tarfile.TarInfo, root: str) -> str:
    """Why this member is not written, as the end of a sentence; empty if nothing is wrong with it."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or "\\" in member.name or ".." in path.parts:
        return "a path that leads elsewhere"
    if any(unicodedata.category(letter).startswith("C") for letter in member.name):
        return "a name with control characters"
    if member.issym() or member.islnk():
        return f"a link (to {member.linkname!r})"
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "neither a plain file nor a folder"
    if member.size < 0 or (member.isdir() and member.size):
        return f"with a size of {member.size} bytes"
    is_inside = not path.parts or path.parts[0] == root or path.parts[0].startswith(FINDER_PREFIX)
    return "" if is_inside else f"outside {root}/"


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _refusal(archive: Path, what: str) -> DatasetError:
    return DatasetError(f"{archive} {what}. Nothing was unpacked; get the archive from a source you trust.")


def _refuse_cut_off(stream: IO[bytes], tar: tarfile.TarFile) -> None:
    """tarfile takes a garbled header for the end; a whole archive has zeros from there on."""
    stream.seek(tar.offset)
    padding = 0
    while block := stream.read(READ_LIMIT):
        padding += len(block)
        if any(block) or padding > PADDING_LIMIT:
            raise tarfile.ReadError(f"something that is no header at byte {tar.offset}")
    if padding < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {tar.offset}")


def refuse_small_disk(folder: Path, needed: int) -> None:
    """StorageFault if fewer than `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFault(
            f"{folder} has {free / 1e9:.1f} GB free, the archive needs {needed / 1e9:.1f} GB unpacked. "
            "Make room or choose another --results; a finished download is kept."
        )


def _extract(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], folder: Path) -> None:
    for member in progress(members, total=len(members), label="Unpacking"):
        tar.extract(member, folder, filter="data")


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def install_folder(made: Path, target: Path, *, aside: Path) -> None:
    """Put `made` at `target`; what was there moves `aside`, and comes back if that fails."""
    if not _exists(target):
        made.rename(target)
        return
    target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        aside.rename(target)
        raise
