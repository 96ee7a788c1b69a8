"""The command that makes a raw data folder; nothing here leaves the machine."""

import fcntl
import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import scripts.download
from data_preprocessing.phantom import PhantomOptions
from scripts.download import DownloadOptions, run
from scripts.download_tasks import DEFAULT_MIRROR, TASKS, find_task
from utils.errors import DatasetError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "Task04_Hippocampus"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder with the archive of one task."""
    folder = tmp_path / "a mirror"
    folder.mkdir()
    with tarfile.open(folder / f"{NAME}.tar", "w") as tar:
        for name in ("dataset.json", "imagesTr/a.nii.gz"):
            info = tarfile.TarInfo(f"{NAME}/{name}")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return folder


@pytest.fixture
def options(tmp_path: Path, mirror: Path) -> DownloadOptions:
    return DownloadOptions(task="04", results=tmp_path / "data", url=mirror.as_uri())


@pytest.fixture
def downloading(options: DownloadOptions, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> DownloadOptions:
    """The default mirror, its answers taken from the folder."""

    def copy(url: str, target: Path) -> Path:
        assert url == f"{DEFAULT_MIRROR}/{NAME}.tar"
        target.write_bytes((mirror / target.name).read_bytes())
        return target

    digest = hashlib.md5((mirror / f"{NAME}.tar").read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(scripts.download, "download", copy)
    monkeypatch.setattr(scripts.download, "find_task", lambda text: replace(find_task(text), md5=digest))
    return replace(options, url=DEFAULT_MIRROR)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.flag("download:results")
def test_the_phantom_lands_below_the_results_folder(tmp_path: Path) -> None:
    root = run(DownloadOptions(results=tmp_path, phantom=PhantomOptions(size="tiny", n_jobs=1)))
    assert root == tmp_path / "Dataset500_PancreasPhantom"
    assert (root / "dataset.json").is_file()


@pytest.mark.parametrize("text", ["4", "04", NAME, NAME.lower()])
def test_a_task_has_three_names(text: str) -> None:
    assert find_task(text).folder == NAME


def test_the_ten_tasks_are_those_of_the_decathlon() -> None:
    assert [task.folder for task in TASKS] == [
        *("Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate"),
        *("Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon"),
    ]
    assert len({task.md5 for task in TASKS if len(task.md5) == 32}) == 10


@pytest.mark.parametrize("text", ["11", "0", "Hippo", "Task04", ""])
def test_an_unknown_task_is_told_with_all_names(text: str) -> None:
    with pytest.raises(UserError, match="phantom and.*Task01_BrainTumour.*Task10_Colon"):
        find_task(text)


@pytest.mark.flag("download:task", "download:url")
def test_a_local_mirror_is_read_where_it_is(options: DownloadOptions, mirror: Path) -> None:
    root = run(options)
    assert (root / "imagesTr/a.nii.gz").read_text() == "imagesTr/a.nii.gz"
    assert names(options.results) == [NAME]
    assert names(mirror) == [f"{NAME}.tar"]


@pytest.mark.flag("download:archive")
def test_a_local_archive_may_have_any_name(options: DownloadOptions, mirror: Path) -> None:
    archive = (mirror / f"{NAME}.tar").rename(mirror / "mine")
    root = run(replace(options, archive=archive, url=DEFAULT_MIRROR))
    assert (root / "dataset.json").is_file()
    assert archive.is_file()


def test_a_downloaded_archive_is_removed_after_unpacking(downloading: DownloadOptions) -> None:
    run(downloading)
    assert names(downloading.results) == [NAME]


@pytest.mark.flag("download:keep_archive")
def test_an_archive_that_was_kept_is_used_again(
    downloading: DownloadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(replace(downloading, keep_archive=True))
    assert names(downloading.results) == [NAME, f"{NAME}.tar"]
    monkeypatch.setattr(scripts.download, "download", None)
    run(replace(downloading, overwrite=True))
    assert names(downloading.results) == [NAME, f"{NAME}.tar"]


def test_a_download_with_another_md5_is_removed(
    downloading: DownloadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.download, "find_task", find_task)
    with pytest.raises(DatasetError, match=r"MD5 .*expected 9d24dba7.*The file was removed"):
        run(downloading)
    assert names(downloading.results) == []


def test_a_download_with_another_sha256_is_removed(downloading: DownloadOptions) -> None:
    with pytest.raises(DatasetError, match=r"SHA256 .*expected aaaa.*The file was removed"):
        run(replace(downloading, sha256="A" * 64))
    assert names(downloading.results) == []


@pytest.mark.flag("download:sha256")
def test_a_local_archive_with_another_sha256_stays(options: DownloadOptions, mirror: Path) -> None:
    with pytest.raises(DatasetError, match=r"SHA256 .*Nothing was unpacked"):
        run(replace(options, sha256="a" * 64))
    assert names(options.results) == []
    assert names(mirror) == [f"{NAME}.tar"]


def test_the_right_sha256_is_accepted(options: DownloadOptions, mirror: Path) -> None:
    digest = hashlib.sha256((mirror / f"{NAME}.tar").read_bytes()).hexdigest().upper()
    assert run(replace(options, sha256=digest)).is_dir()


@pytest.mark.flag("download:overwrite")
def test_a_folder_that_is_there_is_left_alone(
    options: DownloadOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    (options.results / NAME).mkdir(parents=True)
    with pytest.raises(UserError, match=r"without dataset\.json; --overwrite"):
        run(options)
    (options.results / NAME / "dataset.json").write_text("mine")
    assert run(options) == options.results / NAME
    assert "is there already; --overwrite to replace it" in capsys.readouterr().err
    assert names(options.results / NAME) == ["dataset.json"]
    run(replace(options, overwrite=True))
    assert names(options.results / NAME) == ["dataset.json", "imagesTr"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "12"}, "64 hexadecimal digits, got '12'"),
        ({"sha256": "g" * 64}, "64 hexadecimal digits"),
        ({"url": "ftp://a.example"}, "https://, http:// or file://"),
        ({"url": "/data/mirror"}, "https://, http:// or file://"),
        ({"url": "file:///nowhere"}, f"/nowhere/{NAME}.tar does not exist"),
        ({"url": "file://host/share"}, "does not exist on this machine"),
        ({"archive": Path("/nowhere.tar")}, "--archive /nowhere.tar is no file"),
        ({"task": "phantom", "archive": Path("a.tar")}, "--archive needs the --task"),
    ],
)
def test_an_odd_option_is_told(options: DownloadOptions, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        run(replace(options, **changes))  # type: ignore[arg-type]


def test_two_downloads_of_one_task_do_not_meet(options: DownloadOptions) -> None:
    options.results.mkdir()
    with (options.results / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"Another download.py is at work on {NAME}"):
            run(options)
    run(options)  # the lock of a process that is gone does not count
    assert names(options.results) == [NAME]


def test_traces_of_a_killed_run_are_removed(options: DownloadOptions) -> None:
    (options.results / f".{NAME}.abc.unpacking" / NAME).mkdir(parents=True)
    run(options)
    assert names(options.results) == [NAME]


def test_the_command_ends_with_status_2_for_an_unknown_task(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "download.py"), "--task", "17", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "--task '17' is unknown" in done.stderr
    assert not list(tmp_path.iterdir())
