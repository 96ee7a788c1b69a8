"""A task's raw data folder: one of the Medical Segmentation Decathlon, or the phantom, which is drawn."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.archives import remove_leftovers, unpack_dataset
from data_preprocessing.phantom import PhantomOptions, write_phantom
from scripts.download_tasks import DEFAULT_MIRROR, DecathlonTask, find_task
from scripts.download_transfer import SCHEMES, check_digest, download
from utils.command import run_command
from utils.errors import DatasetError, StorageFault, UserError
from utils.options import parse
from utils.prepared_folder import DATASET
from utils.run_log import say

PHANTOM_TASK = "phantom"


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """Which task, where from and where to."""

    task: str = PHANTOM_TASK
    """Task of the Medical Segmentation Decathlon (4, 04 or Task04_Hippocampus); phantom is the synthetic
    pancreas-lesion dataset."""
    results: Path = Path("/data")
    """Folder that will hold the dataset's folder."""
    url: str = DEFAULT_MIRROR
    """Mirror: the https, http or file address of the folder that holds TaskNN_Name.tar."""
    archive: Path | None = None
    """A .tar or .tar.gz that is here already, in place of a download."""
    sha256: str = ""
    """The archive's SHA-256, 64 hexadecimal digits; another archive is refused."""
    keep_archive: bool = False
    """Keep the downloaded archive in the results folder after unpacking."""
    overwrite: bool = False
    """Replace a dataset folder that is there already."""
    phantom: PhantomOptions = field(default_factory=PhantomOptions)


def run(options: DownloadOptions) -> Path:
    """Make the raw dataset of a task and return its folder; raises UserError and its kinds."""
    if options.task == PHANTOM_TASK:
        if options.archive:
            raise UserError("--archive needs the --task that it holds, such as --task 04.")
        root = write_phantom(options.results, options.phantom)
    else:
        root = _fetch(find_task(options.task), options)
    print(f"{root} is ready.")
    return root


def _fetch(task: DecathlonTask, options: DownloadOptions) -> Path:
    """Archive, hash, folder; a folder that is there already is left alone."""
    _refuse_odd_options(options)
    root = options.results / task.folder
    if root.exists() and not options.overwrite:
        if not (root / DATASET).is_file():
            raise UserError(f"{root} is there already, without {DATASET}; --overwrite to replace it.")
        say(f"{root} is there already; --overwrite to replace it.")
        return root
    with _alone(options.results, task):
        remove_leftovers(options.results, task.folder)
        local = options.archive or _local_mirror(options.url, task) or _kept_archive(task, options)
        archive = local or _download(task, options)
        _check_hashes(archive, task, options, is_fresh=local is None)
        root = unpack_dataset(archive, options.results, root=task.folder, overwrite=options.overwrite)
        if local is None and not options.keep_archive:
            archive.unlink()
    return root


def _refuse_odd_options(options: DownloadOptions) -> None:
    check_digest(options.sha256)
    scheme = urlsplit(options.url).scheme
    if scheme not in SCHEMES:
        raise UserError(f"--url should start with https://, http:// or file://, got {options.url!r}.")
    if options.archive and not options.archive.is_file():
        raise UserError(f"--archive {options.archive} is no file.")
    if scheme == "http" and not (options.sha256 or options.archive):
        say("Nothing proves the origin of what comes over http; give --sha256 or use https.")


def _local_mirror(url: str, task: DecathlonTask) -> Path | None:
    """The archive in a file:// mirror, read where it is; None for a mirror on the network."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    path = Path(unquote(parts.path)) / task.archive
    if parts.netloc not in ("", "localhost") or not path.is_file():
        raise UserError(f"--url {url}: {path} does not exist on this machine.")
    return path


def _kept_archive(task: DecathlonTask, options: DownloadOptions) -> Path | None:
    """An archive that --keep_archive, or a run that could not unpack it, left in the results folder."""
    archive = options.results / task.archive
    if not archive.is_file():
        return None
    say(f"{archive} is there already and is used; delete it to download it again.")
    return archive


def _download(task: DecathlonTask, options: DownloadOptions) -> Path:
    url = f"{options.url.rstrip('/')}/{task.archive}"
    say(f"Downloading {url}")
    return download(url, options.results / task.archive)


def _check_hashes(archive: Path, task: DecathlonTask, options: DownloadOptions, *, is_fresh: bool) -> None:
    """DatasetError if the archive is not the one asked for; one downloaded by this run is removed then."""
    expected = [("sha256", options.sha256.lower())] if options.sha256 else []
    if is_fresh and options.url == DEFAULT_MIRROR:
        expected.append(("md5", task.md5))  # against damage on the way; it proves no origin
    for name, digest in expected:
        with archive.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda name=name: hashlib.new(name, usedforsecurity=False))
        if found.hexdigest() == digest:
            continue
        if is_fresh:
            archive.unlink()
        raise DatasetError(
            f"{archive} has the {name.upper()} {found.hexdigest()}, expected {digest}. "
            + ("The file was removed; download it again." if is_fresh else "Nothing was unpacked.")
        )


@contextmanager
def _alone(folder: Path, task: DecathlonTask) -> Iterator[None]:
    """Keeps a second process from working on the same task; the lock dies with its process."""
    path = folder / f".{task.folder}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageFault(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_first = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
        except BlockingIOError:
            is_first = False
        if not is_first:
            raise UserError(
                f"Another download.py is at work on {task.folder} in {folder}. Wait for it to end."
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def main() -> None:
    """Parse the command line and run."""
    run(parse(DownloadOptions, sys.argv[1:], program="download.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
