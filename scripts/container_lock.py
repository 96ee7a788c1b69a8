"""Makes requirements-container.txt anew from requirements.txt; takes about a minute.

Asks pip, without installing anything, for the wheels that Python 3.12 takes on x86_64 and aarch64, with DALI
for CUDA 12 and for CUDA 13, and writes versions and hashes. torch, torchvision and NumPy come with the base.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.container_packages import NEVER_REPLACED, Pin, normalise
from utils.command import run_command
from utils.errors import EnvironmentFault

PYTHON = "3.12"  # of the base image
MACHINES = ("x86_64", "aarch64")
LIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
CUDA_MAJORS = (12, 13)
# They ask for torch, which must not be resolved; what else they need is named beside them.
WITHOUT_DEPENDENCIES = ("pytorch-lightning", "torchmetrics", "lightning-utilities")
LIGHTNING_NEEDS = ("tqdm", "PyYAML", "fsspec[http]", "packaging", "typing-extensions")
HEAD = """\
# What the container may have to add to NVIDIA's PyTorch image: every package of requirements.txt but torch
# and NumPy, and what those need. Exact versions; hashes of the wheels for Python 3.12 on x86_64 and aarch64.
# Made by scripts/container_lock.py; scripts/container_packages.py chooses from it when the image is built.
"""


def read_requirements(text: str) -> list[str]:
    """The `name==version` of each line, without the packages that the base image brings."""
    pins = re.findall(r"(?m)^([\w.-]+==\S+)", text)
    return [pin for pin in pins if normalise(pin.split("==")[0]) not in NEVER_REPLACED]


def resolve(requirements: Sequence[str], machine: str, *, dependencies: bool) -> dict[tuple[str, str], str]:
    """(name, version) -> sha256 of the wheel, as pip would install it on that kind of machine."""
    platforms = [word for libc in LIBC for word in ("--platform", f"{libc}_{machine}")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, *platforms]
    if not dependencies:
        command.append("--no-deps")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += ["--target", str(Path(folder) / "unused"), "--report", str(report), *requirements]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise EnvironmentFault(f"pip found no set of wheels for {machine}: {answer.stderr.strip()}")
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        (normalise(each["metadata"]["name"]), each["metadata"]["version"]): each["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for each in installs
    }


def make_lock(requirements: Sequence[str]) -> list[Pin]:
    """All pins, sorted by name within any CUDA, CUDA 12, CUDA 13."""
    hashes: dict[tuple[str, str], set[str]] = {}
    majors: dict[tuple[str, str], set[int]] = {}
    alone = [pin for pin in requirements if pin.split("==")[0] in WITHOUT_DEPENDENCIES]
    alone += [name for name in WITHOUT_DEPENDENCIES if not any(pin.startswith(name) for pin in alone)]
    for machine in MACHINES:
        for major in CUDA_MAJORS:
            rest = [pin.replace("dali-cuda120", f"dali-cuda{major}0") for pin in requirements]
            rest = [pin for pin in rest if pin not in alone]
            found = resolve([*rest, *LIGHTNING_NEEDS], machine, dependencies=True)
            found |= resolve(alone, machine, dependencies=False)
            for key, digest in found.items():
                hashes.setdefault(key, set()).add(digest)
                majors.setdefault(key, set()).add(major)
    return [_pin(key, hashes[key], majors[key]) for key in sorted(hashes) if key[0] not in NEVER_REPLACED]


def _pin(key: tuple[str, str], digests: set[str], majors: set[int]) -> Pin:
    name, version = key
    text = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests))
    only = min(majors) if len(majors) == 1 else None
    return Pin(name=name, version=version, text=f"{name}=={version}{text}", cuda=only)


def format_lock(pins: Sequence[Pin]) -> str:
    """The file's text."""
    parts = [HEAD]
    for major in (None, *CUDA_MAJORS):
        heading = "" if major is None else f"# cuda {major}\n"
        parts.append(heading + "".join(f"{pin.text}\n" for pin in pins if pin.cuda == major))
    return "\n".join(parts)


def main() -> None:
    """Write the file."""
    requirements = read_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    pins = make_lock(requirements)
    (ROOT / "requirements-container.txt").write_text(format_lock(pins), encoding="utf-8")
    print(f"{len(pins)} packages")


if __name__ == "__main__":
    sys.exit(run_command(main))
