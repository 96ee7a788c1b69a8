"""Downloads over a bad line, from a server in this process whose faults can be chosen."""

import io
import json
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.request import Request

import pytest

from scripts.download_transfer import CHUNK, SameSchemeOnly, download
from utils.errors import StorageFault, UserError

CONTENT = bytes(range(256)) * (3 * CHUNK // 256) + b"the end"
OTHER = bytes(reversed(CONTENT))


@dataclass
class Server:
    """What is served, how badly, and which requests came."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    drops: list[int] = field(default_factory=list)  # bytes after which each of the next answers ends
    failures: list[int] = field(default_factory=list)  # status of each of the next answers
    knows_ranges: bool = True
    obeys_if_range: bool = True
    tells_length: bool = True
    redirect: str = ""
    ranges: list[str | None] = field(default_factory=list)  # of each request that came
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server looks for
        state = self.server_state
        wanted = self.headers.get("Range")
        state.ranges.append(wanted)
        if state.failures:
            self.send_error(state.failures.pop(0))
        elif state.redirect and self.path == "/a.tar":
            self.send_response(302)
            self.send_header("Location", state.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(wanted)

    def answer(self, wanted: str | None) -> None:
        state = self.server_state
        is_fresh = not state.obeys_if_range or self.headers.get("If-Range") == state.etag
        place = re.fullmatch(r"bytes=(\d+)-", wanted or "") if state.knows_ranges and is_fresh else None
        start = int(place[1]) if place else 0
        if start > len(state.content):
            self.send_error(416)
            return
        body = state.content[start:]
        self.send_response(206 if place else 200)
        if place:
            last, total = len(state.content) - 1, len(state.content)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        if state.etag:
            self.send_header("ETag", state.etag)
        if state.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: state.drops.pop(0)] if state.drops else body)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Tests are silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    handler = type("BoundHandler", (Handler,), {"server_state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        state.address = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def pauses() -> list[float]:
    return []


def fetch(server: Server, folder: Path, pauses: list[float]) -> Path:
    return download(f"{server.address}/a.tar", folder / "a.tar", pause=pauses.append)


def leave_part(server: Server, folder: Path, num_bytes: int, *, etag: str | None = '"one"') -> None:
    """What a killed run leaves."""
    record = {"url": f"{server.address}/a.tar", "etag": etag, "size": len(CONTENT)}
    (folder / "a.tar.part").write_bytes(CONTENT[:num_bytes])
    (folder / "a.tar.part.json").write_text(json.dumps(record))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert names(tmp_path) == ["a.tar"]
    assert pauses == []


def test_a_file_of_unknown_length_arrives(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.tells_length = False
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT


def test_a_dropped_connection_is_continued_at_its_byte(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    server.drops = [CHUNK, CHUNK]
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert pauses == [1.0, 1.0]


def test_a_killed_run_is_continued_by_the_next(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    leave_part(server, tmp_path, 1000)
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]
    assert names(tmp_path) == ["a.tar"]


def test_a_part_that_is_whole_needs_no_request(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    leave_part(server, tmp_path, len(CONTENT))
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    leave_part(server, tmp_path, 1000)
    server.knows_ranges = False
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT


@pytest.mark.parametrize("obeys_if_range", [True, False])
@pytest.mark.parametrize("length", [len(OTHER), 500])
def test_another_file_on_the_server_is_never_joined_with_the_part(
    server: Server, tmp_path: Path, pauses: list[float], *, obeys_if_range: bool, length: int
) -> None:
    leave_part(server, tmp_path, 1000)
    server.content, server.etag, server.obeys_if_range = OTHER[:length], '"two"', obeys_if_range
    assert fetch(server, tmp_path, pauses).read_bytes() == OTHER[:length]


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_without_a_strong_etag_a_part_is_not_continued(
    server: Server, tmp_path: Path, pauses: list[float], etag: str | None
) -> None:
    server.etag, server.drops = etag, [CHUNK]
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_part_of_another_address_is_not_continued(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    leave_part(server, tmp_path, 1000)
    record = tmp_path / "a.tar.part.json"
    record.write_text(record.read_text().replace("127.0.0.1", "elsewhere"))
    fetch(server, tmp_path, pauses)
    assert server.ranges == [None]


def test_two_answers_of_500_are_waited_out(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.failures = [500, 503]
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert pauses == [1.0, 2.0]


def test_five_tries_without_a_byte_are_enough(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    leave_part(server, tmp_path, 1000)
    server.failures = [500] * 9
    with pytest.raises(StorageFault, match="500 Internal Server Error; 5 tries brought no further byte"):
        fetch(server, tmp_path, pauses)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:1000]


def test_a_body_that_always_ends_early_is_given_up(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    server.knows_ranges, server.drops = False, [CHUNK] * 99
    with pytest.raises(StorageFault, match=rf"{CHUNK} of {len(CONTENT)} bytes arrived"):
        fetch(server, tmp_path, pauses)
    assert len(server.ranges) == 5
    assert names(tmp_path) == ["a.tar.part", "a.tar.part.json"]


def test_a_missing_file_is_told_at_once(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.failures = [404]
    with pytest.raises(UserError, match=r"a\.tar does not exist \(404\).*--url"):
        fetch(server, tmp_path, pauses)
    assert pauses == []
    assert names(tmp_path) == []


def test_a_forbidden_file_is_told_at_once(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.failures = [403]
    with pytest.raises(UserError, match="403 Forbidden"):
        fetch(server, tmp_path, pauses)
    assert pauses == []


def test_a_server_that_is_away_is_told(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.address = "http://127.0.0.1:9"  # the discard port: nobody listens
    with pytest.raises(StorageFault, match="no answer .*refused"):
        fetch(server, tmp_path, pauses)
    assert len(pauses) == 4


def test_a_redirect_within_http_is_followed(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    server.redirect = f"{server.address}/b.tar"
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.tar"])
def test_a_redirect_to_another_scheme_is_refused(
    server: Server, tmp_path: Path, pauses: list[float], target: str
) -> None:
    server.redirect = target
    with pytest.raises(UserError, match=target):
        fetch(server, tmp_path, pauses)
    assert names(tmp_path) == []
    assert pauses == []


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request, answer = Request("https://a.example/x"), io.BytesIO()
    with pytest.raises(UserError, match="from https only https is followed"):
        SameSchemeOnly().redirect_request(request, answer, 302, "Found", HTTPMessage(), "http://a.example/x")
    assert answer.closed


def test_a_full_disk_is_told_before_a_byte_is_read(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - 1))
    with pytest.raises(StorageFault, match=r"GB free, the download needs"):
        fetch(server, tmp_path, pauses)
    assert names(tmp_path) == []


def test_a_continued_file_needs_room_for_the_rest_only(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_part(server, tmp_path, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - 1000))
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT


def test_a_disk_that_fills_up_leaves_a_part_to_continue(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + 5, hard))
    try:
        with pytest.raises(StorageFault, match=r"a\.tar\.part could not be written: File too large"):
            fetch(server, tmp_path, pauses)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.tar.part").stat().st_size >= CHUNK
    assert fetch(server, tmp_path, pauses).read_bytes() == CONTENT
    assert server.ranges[1] is not None
