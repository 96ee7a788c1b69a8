"""One file over HTTP, resumed where it broke off; what arrives is what the server has, or nothing does."""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from utils.errors import DatasetError, StorageFault, UserError
from utils.run_log import progress, say
from utils.storage import read_record, write_json

TRIES = 5  # in a row, none of which brought a new byte
FIRST_PAUSE_S = 1.0  # doubled after every further try
TIMEOUT_S = 60.0  # without a byte
CHUNK = 2**20  # bytes; one step of the progress bar
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
WORTH_ANOTHER_TRY = {408, 429}  # and every 5xx
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
AGENT = "multitask-nnunet-dali"
SCHEMES = ("https", "http", "file")  # of --url; a file is read where it is
SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What the bytes of a .part file belong to; without a strong `etag` they cannot be continued."""

    url: str
    etag: str | None
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An answer about to be read: its first byte is byte `start` of the file."""

    stream: IO[bytes]
    start: int
    record: PartRecord

    @property
    def length(self) -> int | None:
        """Bytes to come; None where the server does not tell."""
        return None if self.record.size is None else self.record.size - self.start


@dataclass(frozen=True, slots=True)
class _ConnectionLost(Exception):  # noqa: N818 - not an error yet: there may be another try
    """What went wrong on the way, worth another try."""

    reason: str


class SameSchemeOnly(urllib.request.HTTPRedirectHandler):
    """Redirects from https stay https, and those from http lead to http or https: never to a file or ftp."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow; UserError where it leads elsewhere."""
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after != "https" and (before, after) != ("http", "http"):
            fp.close()
            followed = "https" if before == "https" else "http or https"
            raise UserError(
                f"{req.full_url} redirects to {newurl}; from {before} only {followed} is followed. "
                "Name another mirror with --url."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_digest(digest: str) -> None:
    """UserError unless `digest` is empty or could be a SHA-256."""
    if digest and (len(digest) != SHA256_DIGITS or set(digest.lower()) - set("0123456789abcdef")):
        raise UserError(f"--sha256 should be {SHA256_DIGITS} hexadecimal digits, got {digest!r}.")


def download(url: str, target: Path, *, pause: Callable[[float], Any] = time.sleep) -> Path:
    """Get `url` (http or https) and return `target`; a `.part` beside it is continued where it can be.

    The bytes are continued with Range and If-Range, so a server that has another file meanwhile, or knows no
    ranges, sends the whole file and the download starts again. After a lost connection or an answer 408, 429
    or 5xx it is tried again, up to five times in a row without a new byte, with `pause(seconds)` between.
    UserError if the server does not have the file or refuses it; StorageFault if it cannot be reached or
    breaks off for good (the part is kept), or if the file does not fit on the disk (checked before it is
    read).
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures = _size_of(part), 0
    while True:
        try:
            _continue(url, part)
            break
        except _ConnectionLost as lost:
            arrived = _size_of(part)
            failures = 1 if arrived > furthest else failures + 1
            furthest = max(arrived, furthest)
            if failures >= TRIES:
                raise StorageFault(
                    f"{url}: {lost.reason}; {TRIES} tries brought no further byte. {part} is kept: the same "
                    "command continues it. Is there a network? Another mirror can be named with --url."
                ) from lost
            seconds = FIRST_PAUSE_S * 2 ** (failures - 1)
            say(f"{url}: {lost.reason}; next try in {seconds:g} s, {arrived} bytes are here.")
            pause(seconds)
    part.replace(target)
    _record_path(part).unlink(missing_ok=True)
    return target


def _continue(url: str, part: Path) -> None:
    """One try: ask for what is missing of `part` and append it; returns when the file is whole."""
    known = _known_part(url, part)
    body = _ask(url, known, _size_of(part) if known else 0)
    if body is None:
        return
    with body.stream:
        if known and body.start == 0:
            say(f"{url} cannot be continued (another file, or no ranges): starting again.")
        _refuse_small_disk(part.parent, body.length)
        # Truncated before the new record is written: no moment joins old bytes with a new record.
        with part.open("r+b" if body.start else "wb") as stream:
            write_json(_record_path(part), body.record)
            stream.seek(body.start)
            stream.truncate()
            _copy(body, stream, label=part.name.removesuffix(".part"), url=url)
    arrived = _size_of(part)
    if body.record.size is not None and arrived != body.record.size:
        raise _ConnectionLost(f"{arrived} of {body.record.size} bytes arrived")


def _known_part(url: str, part: Path) -> PartRecord | None:
    """The record of `part`, if its bytes may be continued."""
    if not _size_of(part):
        return None
    try:
        record = read_record(PartRecord, _record_path(part))
    except DatasetError:
        return None
    return record if record.url == url and record.etag else None


def _ask(url: str, known: PartRecord | None, start: int) -> Body | None:
    """The answer to a request from byte `start` on; None if the part is the whole file already."""
    if known and start == known.size:
        return None
    # Compressed on the way, ranges and lengths would count other bytes.
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if known and known.etag:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", known.etag)
    try:
        answer = urllib.request.build_opener(SameSchemeOnly).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_NOT_SATISFIABLE and known:
            return _ask(url, None, 0)
        raise _told(url, error) from error
    except (http.client.HTTPException, OSError) as error:
        raise _unreachable(url, error) from error
    return _body(url, answer, known, start)


def _body(url: str, answer: Any, known: PartRecord | None, start: int) -> Body | None:
    etag = answer.headers.get("ETag")
    record = PartRecord(url=url, etag=etag if etag and not etag.startswith("W/") else None, size=None)
    if answer.status != PARTIAL_CONTENT:
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        return Body(stream=answer, start=0, record=replace(record, size=size))
    if known is None:
        answer.close()
        raise UserError(f"{url}: the server answers with a part of the file although all was asked for.")
    place = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    size = int(place[2]) if place and place[2] != "*" else None
    is_same = known.etag == record.etag and known.size in (None, size)
    if place is None or int(place[1]) != start or not is_same:
        # A server that ignores If-Range: the part and the rest are of two files.
        answer.close()
        return _ask(url, None, 0)
    return Body(stream=answer, start=start, record=replace(record, size=size))


def _told(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in WORTH_ANOTHER_TRY or error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return _ConnectionLost(f"the server answers {error.code} {error.reason}")
    if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        return UserError(
            f"{url} does not exist ({error.code}). Is --url right? That of download.py names the folder that "
            "holds TaskNN_Name.tar."
        )
    return UserError(
        f"{url}: the server answers {error.code} {error.reason}. Name another mirror with --url."
    )


def _unreachable(url: str, error: Exception) -> Exception:
    reason = getattr(error, "reason", error)
    if "CERTIFICATE_VERIFY_FAILED" in str(reason):
        return StorageFault(f"{url}: the server's certificate is not valid here ({reason}).")
    return _ConnectionLost(f"no answer ({reason or type(error).__name__})")


def _copy(body: Body, stream: IO[bytes], *, label: str, url: str) -> None:
    """Append the body; what arrived before a connection broke stays."""
    chunks = _chunks(body.stream)
    if body.length is not None:
        chunks = progress(chunks, total=-(-body.length // CHUNK), label=f"{label} (MiB)")
    try:
        for chunk in chunks:
            _write(stream, chunk)
    except (http.client.HTTPException, OSError) as error:
        raise _unreachable(url, error) from error


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _write(stream: IO[bytes], chunk: bytes) -> None:
    try:
        stream.write(chunk)
    except OSError as error:
        raise StorageFault(
            f"{stream.name} could not be written: {error.strerror}. It is kept: make room, and the same "
            "command continues it."
        ) from error


def _refuse_small_disk(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise StorageFault(
            f"{folder} has {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.1f} GB, and as much "
            "again to unpack it. Make room or choose another --results."
        )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _record_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
