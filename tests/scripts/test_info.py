"""main.py info answers at once, imports neither torch nor DALI, and is readable by people and machines."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from scripts import info
from utils.machine import Gpu, GpuList

ROOT = Path(__file__).resolve().parents[2]
MAIN = str(ROOT / "main.py")
# Runs main.py with the arguments behind it, then tells which heavy packages were imported.
PROBE = (
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "except SystemExit as end: assert not end.code, end.code\n"
    "heavy = ('torch', 'nvidia.dali', 'numpy', 'numba')\n"
    "sys.stderr.write(' '.join(name for name in heavy if name in sys.modules))"
)
SECONDS = 3.0  # ten times what it should take: the machine may be busy with other tests


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )


def test_it_imports_nothing_heavy() -> None:
    answer = call("-c", PROBE, MAIN, "info", "--json")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(answer.stdout)


def test_it_answers_in_a_moment() -> None:
    start_s = time.perf_counter()
    assert call(MAIN, "info").returncode == 0
    assert time.perf_counter() - start_s < SECONDS


def test_json_has_versions_devices_and_capabilities(capsys: pytest.CaptureFixture[str]) -> None:
    info.start(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"versions", "gpus", "processors", "memory", "capabilities"}
    assert told["versions"]["torch"] == importlib.metadata.version("torch")
    assert told["versions"]["lightning"] == importlib.metadata.version("pytorch-lightning")
    assert told["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert told["processors"]["usable"] >= 1
    assert told["memory"]["total_bytes"] > 2**20
    assert told["capabilities"]["dali_imports"] is None


def test_the_version_of_the_program_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert info.read_versions()["nnunet"] == project["version"]


def test_cuda_of_torch_is_read_without_importing_it() -> None:
    torch = importlib.import_module("torch")
    assert info.torch_cuda_version() == torch.version.cuda


def test_the_cuda_version_is_found_in_either_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for text in ("cuda: Optional[str] = '13.3'", "cuda = '13.3'"):
        (package / "version.py").write_text(f"debug = False\n{text}\n", encoding="utf-8")
        assert info.torch_cuda_version() == "13.3"


def test_kernels_are_looked_for_where_they_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiling = importlib.import_module("data_loading.kernels.compiling")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert info.kernel_folder() == compiling._cache_folder()
    assert not info.collect(full=False).capabilities.kernels_cached
    entry = info.kernel_folder() / "warp_1/warp.index.nbi"
    entry.parent.mkdir(parents=True)
    entry.touch()
    assert info.collect(full=False).capabilities.kernels_cached
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert info.kernel_folder() == tmp_path / "elsewhere"


def test_full_says_what_torch_and_dali_see(capsys: pytest.CaptureFixture[str]) -> None:
    torch = importlib.import_module("torch")
    info.start(["--json", "--full"])
    told = json.loads(capsys.readouterr().out)["capabilities"]
    assert (told["dali_imports"], told["dali_fault"]) == (True, None)
    assert told["cuda_usable"] == torch.cuda.is_available()


def test_a_broken_dali_is_told_not_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    info.start(["--full"])
    assert "DALI         fails: " in capsys.readouterr().out


def test_gpus_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = Gpu(
        index=0,
        name="NVIDIA H200",
        memory_bytes=140 * 1024**3,
        compute_capability="9.0",
        driver="580.95.05",
        bus_id="0000:18:00.0",
        uuid=None,
    )
    monkeypatch.setattr(info, "read_gpus", lambda: GpuList(source="nvml", gpus=(gpu,)))
    info.start([])
    text = capsys.readouterr().out
    assert "NVIDIA H200, 140.0 GiB, compute capability 9.0, driver 580.95.05 (from nvml)" in text
    assert "bfloat16     GPU" in text


def test_help_of_main_names_it() -> None:
    assert "main.py info" in call(MAIN, "--help").stdout


def test_another_word_ends_with_status_2() -> None:
    assert call(MAIN, "info", "--jsno").returncode == 2


def test_it_runs_by_itself() -> None:
    assert call(str(ROOT / "scripts/info.py")).stdout.startswith("nnunet ")
