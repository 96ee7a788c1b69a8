"""The image: a pinned base whose torch and NumPy stay, locked additions, folders any user may write to."""

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import container_lock
from scripts import container_packages as tool

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-container.txt"
TOOL = ROOT / "scripts/container_packages.py"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its continuation lines joined."""

    word: str
    text: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile; comments are left out, also between continuation lines."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


INSTRUCTIONS = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
RUNS = " && ".join(each.text for each in INSTRUCTIONS if each.word == "RUN")


def texts(word: str) -> list[str]:
    return [each.text for each in INSTRUCTIONS if each.word == word]


def settings(word: str) -> dict[str, str]:
    """The NAME=value pairs of all ENV or LABEL instructions."""
    pairs = (re.findall(r'([\w.]+)=("[^"]*"|\S+)', text) for text in texts(word))
    return {name: value.strip('"') for found in pairs for name, value in found}


PINS = tool.read_lock(LOCK.read_text(encoding="utf-8"))
REQUIRED = dict(
    (tool.normalise(match[1]), match[2])
    for match in re.finditer(
        r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8")
    )
)
BASE = {"torch": "2.13.0a0+9186a08b2c.nv26.07", "torchvision": "0.28.0a0", "numpy": "2.1.0"}


def test_the_base_is_one_release_of_nvidias_image() -> None:
    assert len(texts("FROM")) == 1
    image, _, tag = texts("FROM")[0].partition(":")
    assert image == "nvcr.io/nvidia/pytorch"
    assert re.fullmatch(r"\d\d\.\d\d-py3(@sha256:[0-9a-f]{64})?", tag)
    assert settings("LABEL")["org.opencontainers.image.base.name"] == texts("FROM")[0].partition("@")[0]


def test_the_entry_point_and_the_user_are_the_bases() -> None:
    assert texts("ENTRYPOINT") == []
    assert texts("USER") == []
    assert texts("WORKDIR") == ["/workspace/nnunet"]
    assert texts("CMD") == ['["/bin/bash"]']


def test_every_installation_leaves_dependencies_alone() -> None:
    installs = [part for part in re.split(r"&&|\|\|", RUNS) if "pip install" in part]
    assert len(installs) == 2
    assert all("--no-deps" in part and "--upgrade" not in part for part in installs)
    assert "--require-hashes" in installs[0] and "PIP_CONSTRAINT=" in installs[0]
    assert "dllogger@v" in installs[1]


def test_a_build_goes_on_without_dllogger() -> None:
    run = next(each.text for each in INSTRUCTIONS if "dllogger" in each.text)
    assert re.search(r"\|\| echo ", run)


def test_nothing_is_fetched_without_a_checksum() -> None:
    assert re.search(r"\b(curl|wget|ADD|apt-get)\b", RUNS) is None
    assert texts("ADD") == []


def test_folders_are_writable_by_any_user() -> None:
    made = re.findall(r"mkdir -m 1777 ([^&]*)", RUNS)
    writable = {Path(path) for group in made for path in group.split()}
    assert {Path("/data"), Path("/results")} <= writable
    environment = settings("ENV")
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        folder = Path(environment[name])
        assert writable.intersection([folder, *folder.parents]), name
    assert environment["USER"]


def test_kernels_are_kept_by_the_state_of_their_source() -> None:
    # NUMBA_CACHE_DIR would take the place of the folder that data_loading.kernels.compiling names by a hash.
    assert "NUMBA_CACHE_DIR" not in settings("ENV")
    assert settings("ENV")["OMP_NUM_THREADS"].isdigit()


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = settings("LABEL")
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.title"] == project["name"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for text in texts("COPY"):
        *sources, _ = text.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert source not in ignored


@pytest.mark.parametrize(
    "name", [".git", ".venv", "results", "data", ".pytest_cache", "**/__pycache__", "**/*.ckpt"]
)
def test_the_build_context_leaves_out(name: str) -> None:
    lines = [line.rstrip("/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    assert name in lines


def test_the_lock_agrees_with_the_requirements() -> None:
    locked = {pin.name: pin.version for pin in PINS}
    for name, version in REQUIRED.items():
        if name in tool.NEVER_REPLACED:
            assert name not in locked
        else:
            assert locked.get(name) == version, f"{name}: run scripts/container_lock.py"
    assert locked["nvidia-dali-cuda130"] == locked["nvidia-dali-cuda120"]


def test_every_pin_has_a_hash() -> None:
    assert len(PINS) > 30
    assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", pin.text) for pin in PINS)


@pytest.mark.parametrize(("cuda", "suffix"), [(12, "cuda120"), (13, "cuda130")])
def test_dali_follows_the_cuda_of_the_base(cuda: int, suffix: str) -> None:
    names = [pin.name for pin in tool.choose(PINS, BASE, cuda)]
    assert [name for name in names if "dali" in name] == [f"nvidia-dali-{suffix}"]
    assert not any(name.endswith(f"cu{25 - cuda}") for name in names)


def test_what_the_base_has_stays_but_dali() -> None:
    base = BASE | {"scipy": "1.16.0", "numba": "0.64.0", "nvidia-dali-cuda130": "2.2.0", "rich": "15.0.0"}
    chosen = {pin.name: pin.version for pin in tool.choose(PINS, base, 13)}
    assert chosen["nvidia-dali-cuda130"] == REQUIRED["nvidia-dali-cuda120"]
    assert chosen["pytorch-lightning"] == REQUIRED["pytorch-lightning"]
    assert {"scipy", "numba", "rich", *tool.NEVER_REPLACED}.isdisjoint(chosen)


def test_dali_of_the_right_version_stays() -> None:
    base = {pin.name: pin.version for pin in PINS}
    assert tool.choose(PINS, base, 13) == ()


def test_constraints_are_the_bases_versions_without_what_changes() -> None:
    base = BASE | {"nvidia-dali-cuda130": "2.2.0"}
    text = tool.constraints(base, tool.choose(PINS, base, 13))
    assert text.splitlines() == ["numpy==2.1.0", f"torch=={BASE['torch']}", "torchvision==0.28.0a0"]
    assert tool.changed(text, base) == []
    assert tool.changed(text, base | {"numpy": "2.4.6"}) == ["numpy was 2.1.0, is 2.4.6"]
    assert tool.changed(text, {"torch": BASE["torch"], "numpy": "2.1.0"}) == [
        "torchvision was 0.28.0a0, is gone"
    ]


def test_unmet_requirements_are_named() -> None:
    complaints = tool.unmet(["scikit-learn"], {"numpy": "0.1", "scipy": "1.17.1", "threadpoolctl": "3.8.0"})
    assert any(
        text.startswith("scikit-learn needs numpy") and text.endswith("found 0.1") for text in complaints
    )
    assert any(text.endswith("found None") for text in complaints)
    assert tool.unmet(["torchmetrics"], tool.installed_versions()) == []


@pytest.mark.parametrize(
    ("variable", "message"), [(None, "CUDA_VERSION should be set"), ("11.8", "no DALI for CUDA 11")]
)
def test_a_base_without_a_fitting_cuda_stops_the_build(
    variable: str | None, message: str, tmp_path: Path
) -> None:
    environment = {} if variable is None else {"CUDA_VERSION": variable}
    words = [
        sys.executable,
        str(TOOL),
        "select",
        str(LOCK),
        str(tmp_path / "chosen"),
        str(tmp_path / "limits"),
    ]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert message in answer.stderr


def test_select_writes_what_pip_reads(tmp_path: Path) -> None:
    chosen, limits = tmp_path / "chosen", tmp_path / "limits"
    words = [sys.executable, str(TOOL), "select", str(LOCK), str(chosen), str(limits)]
    subprocess.run(words, env={"CUDA_VERSION": "13.3.1.008"}, capture_output=True, check=True)
    lines = chosen.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\S+==\S+ --hash=sha256:", line) for line in lines)
    assert any(line.startswith("nvidia-dali-cuda130==") for line in lines)
    assert re.search(r"(?m)^torch==", limits.read_text(encoding="utf-8"))


def test_a_new_lock_is_read_as_it_was_made() -> None:
    pins = [
        tool.Pin(name="a", version="1", text="a==1 \\\n    --hash=sha256:" + "0" * 64, cuda=None),
        tool.Pin(name="b-cu13", version="2", text="b-cu13==2 \\\n    --hash=sha256:" + "1" * 64, cuda=13),
    ]
    read = tool.read_lock(container_lock.format_lock(pins))
    assert [(pin.name, pin.version, pin.cuda) for pin in read] == [("a", "1", None), ("b-cu13", "2", 13)]
    assert read[0].text == f"a==1 --hash=sha256:{'0' * 64}"


def test_the_lock_in_use_is_as_the_maker_writes_it() -> None:
    assert LOCK.read_text(encoding="utf-8").startswith(container_lock.HEAD)


def test_the_bases_own_packages_are_not_asked_for() -> None:
    asked = container_lock.read_requirements("torch==2.13.0 # tensors\nNumPy==2.4.6\nisal==1.9.1 # gzip\n")
    assert asked == ["isal==1.9.1"]
