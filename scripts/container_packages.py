"""What the container image has to add to its base: chosen from a locked list, checked once installed.

Runs while the image is built, before any package of ours is there: standard library only, except `verify`,
which needs `packaging`.

    python container_packages.py select LOCK CHOSEN CONSTRAINTS
    python container_packages.py verify LOCK CONSTRAINTS
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

NEVER_REPLACED = ("torch", "torchvision", "numpy")  # compiled for one another by whoever made the base image
FOLLOWS_LOCK = "nvidia-"  # DALI and its libraries: the graphs are tested against one version of it
SECTION = re.compile(r"#\s*cuda (\d+)\s*$")
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of the lock; `text` is what pip reads, `cuda` the CUDA major it is for (None: any)."""

    name: str
    version: str
    text: str
    cuda: int | None


def read_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock file; a line `# cuda 13` starts those that only this CUDA major needs."""
    pins: list[Pin] = []
    cuda: int | None = None
    for line in text.replace("\\\n", " ").splitlines():
        if section := SECTION.match(line):
            cuda = int(section[1])
        elif pin := PIN.match(line):
            name, version = normalise(pin[1]), pin[2]
            pins.append(Pin(name=name, version=version, text=" ".join(line.split()), cuda=cuda))
    return tuple(pins)


def normalise(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def choose(pins: Iterable[Pin], installed: Mapping[str, str], cuda: int) -> tuple[Pin, ...]:
    """The pins to install: what the base lacks, and DALI with its libraries where the version differs.

    `installed` maps normalised names to versions. A package that the base has stays, whatever its version.
    """
    return tuple(
        pin
        for pin in pins
        if pin.name not in NEVER_REPLACED
        and pin.cuda in (None, cuda)
        and (
            installed.get(pin.name) != pin.version
            if pin.name.startswith(FOLLOWS_LOCK)
            else pin.name not in installed
        )
    )


def constraints(installed: Mapping[str, str], chosen: Iterable[Pin]) -> str:
    """The base's own versions as a pip constraints file, without those that are about to change."""
    changing = {pin.name for pin in chosen}
    return "".join(
        f"{name}=={version}\n" for name, version in sorted(installed.items()) if name not in changing
    )


def changed(constraint_text: str, installed: Mapping[str, str]) -> list[str]:
    """Sentences about packages of the base whose version is no longer what the constraints say."""
    lines = (line.split("==", 1) for line in constraint_text.splitlines() if "==" in line)
    return [
        f"{name} was {version}, is {installed.get(name, 'gone')}"
        for name, version in lines
        if installed.get(name) != version
    ]


def unmet(names: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Sentences about requirements of the named packages that the installed versions do not meet."""
    from packaging.requirements import Requirement

    complaints = []
    for name in names:
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            version = installed.get(normalise(wanted.name))
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                complaints.append(f"{name} needs {wanted.name}{wanted.specifier}, found {version}")
    return complaints


def installed_versions() -> dict[str, str]:
    """Normalised name to version of every distribution found; the first on the path counts."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalise(name), distribution.version)
    return found


def cuda_major(environment: Mapping[str, str]) -> int:
    """The CUDA major of the base image, from CUDA_VERSION, which NVIDIA's images set; else ValueError."""
    version = environment.get("CUDA_VERSION", "")
    if not version.split(".")[0].isdigit():
        raise ValueError(f"CUDA_VERSION should be set by the base image, as in 13.3.1; got {version!r}.")
    return int(version.split(".")[0])


def select(lock: Path, chosen_file: Path, constraints_file: Path) -> None:
    """Write what pip installs, and what it must not touch."""
    installed, cuda = installed_versions(), cuda_major(os.environ)
    pins = read_lock(lock.read_text(encoding="utf-8"))
    if not any(pin.cuda == cuda for pin in pins):
        raise ValueError(f"{lock} has no DALI for CUDA {cuda}.")
    chosen = choose(pins, installed, cuda)
    chosen_file.write_text("".join(f"{pin.text}\n" for pin in chosen), encoding="utf-8")
    constraints_file.write_text(constraints(installed, chosen), encoding="utf-8")
    names = {pin.name for pin in chosen}
    for pin in pins:
        if pin.name in names:
            print(f"add   {pin.name} {pin.version} (here: {installed.get(pin.name, 'none')})")
        elif pin.name in installed:
            print(f"keep  {pin.name} {installed[pin.name]} (locked: {pin.version})")


def verify(lock: Path, constraints_file: Path) -> None:
    """Fail where the base's packages have changed or a package of the lock lacks what it needs."""
    installed, cuda = installed_versions(), cuda_major(os.environ)
    pins = read_lock(lock.read_text(encoding="utf-8"))
    names = [pin.name for pin in pins if pin.cuda in (None, cuda) and pin.name in installed]
    faults = changed(constraints_file.read_text(encoding="utf-8"), installed) + unmet(names, installed)
    if faults:
        raise ValueError("The image is not consistent: " + "; ".join(faults) + ".")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"select": select, "verify": verify}[command](*map(Path, paths))
