"""Archives from elsewhere: whole and harmless ones are unpacked, of others nothing is written."""

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_preprocessing.archives import ArchiveLimits, remove_leftovers, unpack_dataset
from utils.errors import DatasetError, StorageFault, UserError

ROOT = "Task04_Hippocampus"
GOOD = ((f"{ROOT}/dataset.json", b"{}"), (f"{ROOT}/imagesTr/a.nii.gz", b"voxels"))


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def make_archive(path: Path, *extra: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, content in (*(member(*entry) for entry in GOOD), *extra):
            tar.addfile(info, io.BytesIO(content))
    return path


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_whole_archive_becomes_a_folder_and_nothing_else(tmp_path: Path, out: Path, mode: str) -> None:
    root = unpack_dataset(make_archive(tmp_path / "a.tar", mode=mode), out, root=ROOT)
    assert root == out / ROOT
    assert files_below(out) == {name for name, _ in GOOD}
    assert (root / "imagesTr/a.nii.gz").read_bytes() == b"voxels"
    assert [path.name for path in out.iterdir()] == [ROOT]


def test_files_of_the_finder_are_left_out(tmp_path: Path, out: Path) -> None:
    extra = [member(f"./._{ROOT}", b"x"), member(f"{ROOT}/imagesTr/._a.nii.gz", b"x"), member(".", type=b"5")]
    unpack_dataset(make_archive(tmp_path / "a.tar", *extra), out, root=ROOT)
    assert files_below(out) == {name for name, _ in GOOD}


HARMFUL = {
    "absolute": ([member("/tmp/evil", b"x")], "a path that leads elsewhere"),
    "parent": ([member(f"{ROOT}/../evil", b"x")], "a path that leads elsewhere"),
    "backslash": ([member(f"{ROOT}\\..\\evil", b"x")], "a path that leads elsewhere"),
    "newline": ([member(f"{ROOT}/a\nb", b"x")], "control characters"),
    "outside": ([member("Task05_Prostate/a", b"x")], f"outside {ROOT}/"),
    "beside": ([member("evil", b"x")], f"outside {ROOT}/"),
    "link out": ([member(f"{ROOT}/l", type=tarfile.SYMTYPE, linkname="/etc")], "a link"),
    "link in": ([member(f"{ROOT}/l", type=tarfile.SYMTYPE, linkname="dataset.json")], "a link"),
    "hard link": ([member(f"{ROOT}/l", type=tarfile.LNKTYPE, linkname="/etc/passwd")], "a link"),
    "device": ([member(f"{ROOT}/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "neither a plain file"),
    "pipe": ([member(f"{ROOT}/p", type=tarfile.FIFOTYPE)], "neither a plain file"),
    "twice": ([member(f"{ROOT}/dataset.json", b"[]")], "twice"),
    "twice, folded": ([member(f"{ROOT}/DataSet.JSON", b"[]")], "twice"),
    "below a file": ([member(f"{ROOT}/dataset.json/x", b"x")], "below something that is no folder"),
}


@pytest.mark.parametrize(("extra", "reason"), HARMFUL.values(), ids=HARMFUL.keys())
def test_a_harmful_member_is_refused_before_anything_is_written(
    tmp_path: Path, out: Path, extra: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    before = files_below(tmp_path.parent)
    archive = make_archive(tmp_path / "a.tar", *extra)
    with pytest.raises(DatasetError, match=reason):
        unpack_dataset(archive, out, root=ROOT)
    assert list(out.iterdir()) == []
    assert files_below(tmp_path.parent) == before | {archive.relative_to(tmp_path.parent).as_posix()}


def test_a_sparse_file_is_refused(tmp_path: Path, out: Path) -> None:
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    content = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
    sparse = member(f"{ROOT}/s", content, pax_headers=fields | {"GNU.sparse.name": f"{ROOT}/s"})
    with pytest.raises(DatasetError, match="neither a plain file"):
        unpack_dataset(make_archive(tmp_path / "a.tar", sparse), out, root=ROOT)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ArchiveLimits(max_members=1), "more than 1 members"),
        (ArchiveLimits(max_bytes=7), "unpacks to more than 8 bytes"),
    ],
)
def test_too_many_members_or_bytes_are_refused(
    tmp_path: Path, out: Path, limits: ArchiveLimits, reason: str
) -> None:
    with pytest.raises(DatasetError, match=reason):
        unpack_dataset(make_archive(tmp_path / "a.tar"), out, root=ROOT, limits=limits)
    assert list(out.iterdir()) == []


def test_an_archive_of_packed_zeros_is_refused(tmp_path: Path, out: Path) -> None:
    zeros = member(f"{ROOT}/zeros", bytes(4_000_000))
    with pytest.raises(DatasetError, match="unpacks to more than"):
        unpack_dataset(make_archive(tmp_path / "a.tar.gz", zeros, mode="w:gz"), out, root=ROOT)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, out: Path) -> None:
    """A long name of 3 GB: tarfile would read it in one go, as the header of the next member."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 * 2**30
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DatasetError, match="a header of 3221225472 bytes"):
        unpack_dataset(archive, out, root=ROOT)


def cut_in_a_file(data: bytes) -> bytes:
    return data[: data.index(b"voxels") + 3]


def cut_behind_a_file(data: bytes) -> bytes:
    return data[: (data.index(b"voxels") // 512 + 1) * 512]


def garbled_header(data: bytes) -> bytes:
    place = data.index(f"{ROOT}/imagesTr".encode())
    return data[:place] + b"?" + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_a_file,
        cut_behind_a_file,
        garbled_header,
        lambda data: gzip.compress(data)[:-12],
        lambda data: gzip.compress(data)[:-8] + bytes(8),
        lambda data: data + b"more",
        lambda _: b"<html>not found</html>" * 100,
        lambda _: b"",
    ],
    ids=["in a file", "behind a file", "header", "gzip cut", "gzip checksum", "more", "html", "empty"],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, out: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = make_archive(tmp_path / "a.tar")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DatasetError, match=r"a\.tar is no whole \.tar"):
        unpack_dataset(archive, out, root=ROOT)
    assert list(out.iterdir()) == []


def test_an_archive_without_dataset_json_leaves_nothing(tmp_path: Path, out: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(*(lambda entry: (entry[0], io.BytesIO(entry[1])))(member(f"{ROOT}/a", b"x")))
    with pytest.raises(DatasetError, match=rf"holds no {ROOT}/dataset\.json"):
        unpack_dataset(archive, out, root=ROOT)
    assert list(out.iterdir()) == []


def test_an_existing_folder_is_left_alone_unless_it_may_be_replaced(tmp_path: Path, out: Path) -> None:
    archive = make_archive(tmp_path / "a.tar")
    (out / ROOT).mkdir()
    (out / ROOT / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; --overwrite"):
        unpack_dataset(archive, out, root=ROOT)
    assert files_below(out) == {f"{ROOT}/mine.txt"}
    unpack_dataset(archive, out, root=ROOT, overwrite=True)
    assert files_below(out) == {name for name, _ in GOOD}
    assert [path.name for path in out.iterdir()] == [ROOT]


def test_the_old_folder_survives_a_replacement_that_fails(tmp_path: Path, out: Path) -> None:
    archive = make_archive(tmp_path / "a.tar", member(f"{ROOT}/{'n' * 300}", b"x"))
    (out / ROOT).mkdir()
    (out / ROOT / "mine.txt").write_text("mine")
    with pytest.raises(StorageFault, match="could not be unpacked"):
        unpack_dataset(archive, out, root=ROOT, overwrite=True)
    assert files_below(out) == {f"{ROOT}/mine.txt"}
    assert [path.name for path in out.iterdir()] == [ROOT]


def test_a_dataset_larger_than_the_free_disk_is_refused(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "a.tar")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises(StorageFault, match="GB free, the archive needs"):
        unpack_dataset(archive, out, root=ROOT)
    assert list(out.iterdir()) == []


def test_an_archive_that_is_missing_is_told(tmp_path: Path, out: Path) -> None:
    with pytest.raises(StorageFault, match="No such file"):
        unpack_dataset(tmp_path / "none.tar", out, root=ROOT)


def test_the_traces_of_a_killed_run_are_removed(out: Path) -> None:
    (out / f".{ROOT}.x1.unpacking" / ROOT).mkdir(parents=True)
    (out / "other").mkdir()
    remove_leftovers(out, ROOT)
    assert [path.name for path in out.iterdir()] == ["other"]
