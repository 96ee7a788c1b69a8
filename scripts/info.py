"""The story of info: what is installed and what this machine offers, without importing torch or DALI."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command import run_command
from utils.machine import GpuList, Memory, Processors, has_bfloat16, read_gpus, read_memory, read_processors

DESCRIPTION = "Show versions, devices and capabilities; in a moment, without importing torch or DALI."
PROJECT = "multitask-nnunet-dali"
PACKAGES = {  # what a report calls it: the distributions that may hold it
    "torch": ("torch",),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "lightning": ("pytorch-lightning", "lightning"),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "numba": ("numba",),
    "nibabel": ("nibabel",),
    "scikit-learn": ("scikit-learn",),
    "dllogger": ("dllogger",),
}
CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """How much is shown, and for whom."""

    json: bool = False
    """One JSON object on standard output instead of lines."""
    full: bool = False
    """Import torch and DALI as well and say what they see; takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What runs here; None where only --full can tell."""

    bfloat16_gpu: bool
    bfloat16_cpu: bool
    kernels_cached: bool  # files of Numba's cache are there; a new processor type still compiles once
    kernels_folder: str
    cuda_usable: bool | None = None  # torch found a driver and a device
    dali_imports: bool | None = None
    dali_fault: str | None = None  # why DALI cannot be imported


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Everything that the command reports; a version that is not known is None."""

    versions: dict[str, str | None]
    gpus: GpuList
    processors: Processors
    memory: Memory
    capabilities: Capabilities


def collect(*, full: bool) -> Info:
    """Look, without importing what is looked for; with `full`, torch and DALI are imported after that."""
    gpus, processors = read_gpus(), read_processors()
    folder = kernel_folder()
    fault = _dali_fault() if full else None
    capabilities = Capabilities(
        bfloat16_gpu=any(has_bfloat16(gpu) for gpu in gpus.gpus),
        bfloat16_cpu=processors.has_bfloat16,
        kernels_cached=next(folder.glob("**/*.nbi"), None) is not None,
        kernels_folder=str(folder),
        cuda_usable=_cuda_usable() if full else None,
        dali_imports=fault is None if full else None,
        dali_fault=fault,
    )
    versions = read_versions() | (_loaded_versions() if full else {})
    return Info(
        versions=versions, gpus=gpus, processors=processors, memory=read_memory(), capabilities=capabilities
    )


def read_versions() -> dict[str, str | None]:
    """Versions by name, from the installed metadata and from files; nothing is imported."""
    versions = {"nnunet": own_version(), "python": platform.python_version()}
    versions |= {name: first_version(distributions) for name, distributions in PACKAGES.items()}
    versions["cuda"] = torch_cuda_version()
    versions["cudnn"] = first_version(CUDNN) or os.environ.get("CUDNN_VERSION")
    return versions


def own_version() -> str | None:
    """The version in pyproject.toml beside this code; the installed one where that file is not there."""
    try:
        text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        return first_version((PROJECT,))


def first_version(distributions: Sequence[str]) -> str | None:
    """The version of the first distribution that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def torch_cuda_version() -> str | None:
    """The CUDA that torch was built for, read from its version file; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == "cuda" and isinstance(value, ast.Constant):
            return value.value if isinstance(value.value, str) else None
    return None


def kernel_folder() -> Path:
    """Where compiled kernels are kept: the rule of data_loading.kernels.compiling, which imports Numba."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    files = sorted((Path(__file__).resolve().parents[1] / "data_loading/kernels").glob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / PROJECT / f"kernels-{state}"


def _cuda_usable() -> bool:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):
        return False
    return bool(torch.cuda.is_available())


def _dali_fault() -> str | None:
    """Why DALI cannot be imported; None where it can."""
    try:
        importlib.import_module("nvidia.dali")  # by name: nothing here depends on it
    except (ImportError, OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None


def _loaded_versions() -> dict[str, str | None]:
    """What torch itself says, where it could be imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {"cuda": torch.version.cuda} | ({"cudnn": str(cudnn)} if cudnn else {})


def lines(info: Info) -> list[str]:
    """The report for people."""
    shown = [f"{name:<13}{version or '-'}" for name, version in info.versions.items()]
    processors, memory, can = info.processors, info.memory, info.capabilities
    limit = f", container limit {processors.container_limit:g}" if processors.container_limit else ""
    model = f" ({processors.model})" if processors.model else ""
    shown.append(f"{'processors':<13}{processors.usable} of {processors.online} usable{limit}{model}")
    limit = f", container limit {_gib(memory.container_limit_bytes)}" if memory.container_limit_bytes else ""
    shown.append(f"{'memory':<13}{_gib(memory.total_bytes)}, {_gib(memory.available_bytes)} available{limit}")
    for gpu in info.gpus.gpus:
        shown.append(
            f"{f'GPU {gpu.index}':<13}{gpu.name}, {_gib(gpu.memory_bytes)}, compute capability "
            f"{gpu.compute_capability or '-'}, driver {gpu.driver or '-'} (from {info.gpus.source})"
        )
    if not info.gpus.gpus:
        shown.append(f"{'GPU':<13}none found")
    half = [name for name, has in (("GPU", can.bfloat16_gpu), ("CPU", can.bfloat16_cpu)) if has]
    shown.append(f"{'bfloat16':<13}{' and '.join(half) or 'no'}")
    kept = "there" if can.kernels_cached else "none yet, compiled at the first use"
    shown.append(f"{'kernels':<13}{kept} ({can.kernels_folder})")
    if can.cuda_usable is not None:
        shown.append(f"{'torch':<13}{'finds' if can.cuda_usable else 'finds no'} CUDA device")
    if can.dali_imports is not None:
        shown.append(f"{'DALI':<13}{'imports' if can.dali_imports else f'fails: {can.dali_fault}'}")
    return shown


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.1f} GiB"


def run(options: InfoOptions) -> None:
    """Print the report."""
    info = collect(full=options.full)
    print(json.dumps(asdict(info), indent=2) if options.json else "\n".join(lines(info)))


def start(arguments: Sequence[str]) -> None:
    """Run from `arguments`, those behind the word info."""
    known = {"--json", "--full"}
    if known.issuperset(arguments):
        # The parser would take longer than everything else here.
        options = InfoOptions(json="--json" in arguments, full="--full" in arguments)
    else:
        from utils.options import parse

        options = parse(InfoOptions, arguments, program="main.py info", description=DESCRIPTION)
    run(options)


def main() -> None:
    """Run from the command line."""
    start(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
