"""What this machine offers a run: processors, memory, limits of its container, GPUs; read without torch."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")
BYTES_PER_KIB = 1024
BYTES_PER_MIB = 1024**2
NO_LIMIT_BYTES = 2**60  # cgroup v1 writes a number of this size where there is no limit
SMI_SECONDS = 10.0  # nvidia-smi hangs where a driver is broken
SMI_FIELDS = "name,memory.total,compute_cap,driver_version,pci.bus_id,uuid"
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 and Arm, as in /proc/cpuinfo
BFLOAT16_CAPABILITY = 8.0  # first compute capability whose tensor cores multiply bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU in the driver's order; what the driver does not tell is None."""

    index: int
    name: str
    memory_bytes: int | None
    compute_capability: str | None  # as in 9.0
    driver: str | None
    bus_id: str | None  # domain:bus:device.function
    uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuList:
    """The GPUs and who told of them: nvml, nvidia-smi or none."""

    source: str
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """Logical processors, and how many of them a container may keep busy at once (None: no limit)."""

    model: str | None
    online: int
    usable: int
    container_limit: float | None
    has_bfloat16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the machine in bytes, and the most that the container may hold (None: no limit)."""

    total_bytes: int | None
    available_bytes: int | None
    container_limit_bytes: int | None


def read_gpus() -> GpuList:
    """The GPUs of this machine by NVML, else by nvidia-smi; an empty list where neither answers.

    All of them: CUDA_VISIBLE_DEVICES is not applied, see `visible_gpus`.
    """
    return _gpus_by_nvml() or _gpus_by_smi() or GpuList(source="none")


def visible_gpus(listed: GpuList, variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows to this process, in its order; `variable` is CUDA_VISIBLE_DEVICES.

    As in CUDA, an entry that names no GPU ends the list. A MIG instance is not found by its name.
    """
    if variable is None:
        return listed.gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in variable.split(",")):
        found = [gpu for gpu in listed.gpus if _names(entry, gpu)]
        if len(found) != 1:
            break
        chosen.append(found[0])
    return tuple(chosen)


def read_processors(root: Path = ROOT) -> Processors:
    """The processors that this process may run on; `root` is the folder that holds proc and sys."""
    info = _text(root / "proc/cpuinfo") or ""
    fields = dict(_fields(info))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    quotas = [quota for folder in _cgroups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return Processors(
        model=fields.get("model name") or None,
        online=os.cpu_count() or 1,
        usable=len(usable_cpus()),
        container_limit=min(quotas, default=None),
        has_bfloat16=not BFLOAT16_FLAGS.isdisjoint(flags),
    )


def usable_cpus() -> frozenset[int]:
    """The logical processors that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def read_memory(root: Path = ROOT) -> Memory:
    """Memory of the machine and limit of the container; `root` is the folder that holds proc and sys."""
    fields = dict(_fields(_text(root / "proc/meminfo") or ""))
    limits = [limit for folder in _cgroups(root, "memory") if (limit := _memory_limit(folder)) is not None]
    return Memory(
        total_bytes=_kib(fields.get("MemTotal")),
        available_bytes=_kib(fields.get("MemAvailable")),
        container_limit_bytes=min(limits, default=None),
    )


def has_bfloat16(gpu: Gpu) -> bool:
    """Whether the GPU multiplies bfloat16 in hardware."""
    return gpu.compute_capability is not None and float(gpu.compute_capability) >= BFLOAT16_CAPABILITY


def _names(entry: str, gpu: Gpu) -> bool:
    if entry.isdigit():
        return int(entry) == gpu.index
    return bool(entry) and gpu.uuid is not None and gpu.uuid.startswith(entry)


def _gpus_by_nvml() -> GpuList | None:
    try:
        nvml = importlib.import_module(
            "pynvml"
        )  # the module of the package nvidia-ml-py, which may be absent
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        driver = _as_text(nvml.nvmlSystemGetDriverVersion())
        count = nvml.nvmlDeviceGetCount()
        return GpuList(source="nvml", gpus=tuple(_nvml_gpu(nvml, index, driver) for index in range(count)))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        name=_as_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=f"{major}.{minor}",
        driver=driver,
        bus_id=_as_text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        uuid=_as_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes in older versions


def _gpus_by_smi() -> GpuList | None:
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_smi(answer.stdout)


def parse_smi(text: str) -> GpuList:
    """The GPUs in nvidia-smi's answer to a query of SMI_FIELDS, one line each; [N/A] becomes None."""
    gpus = []
    for index, line in enumerate(text.strip().splitlines()):
        name, *rest = (part.strip() for part in line.split(","))
        known = [None if part.startswith("[") else part for part in rest]
        memory, capability, driver, bus_id, uuid = (*known, None, None, None, None, None)[:5]
        gpus.append(
            Gpu(
                index=index,
                name=name,
                memory_bytes=int(memory) * BYTES_PER_MIB if memory else None,
                compute_capability=capability,
                driver=driver,
                bus_id=bus_id,
                uuid=uuid,
            )
        )
    return GpuList(source="nvidia-smi", gpus=tuple(gpus))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders whose limits hold for this process, from its own up to the mount; version 1 and 2."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if names else "")
        folder = mount / path.strip("/")
        # Seen from inside a container the path may be the host's; then the mount itself is the container's.
        yield from [folder, *folder.parents][: len(folder.parts) - len(mount.parts) + 1]


def _cpu_quota(folder: Path) -> float | None:
    """Processors per period, from cpu.max (version 2) or cpu.cfs_quota_us (version 1)."""
    both = (_text(folder / "cpu.max") or "").split()
    if not both:
        both = [(_text(folder / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(both) != 2 or not all(part.isdigit() for part in both) or int(both[1]) == 0:
        return None  # "max" and -1 mean no limit
    return int(both[0]) / int(both[1])


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = (_text(folder / name) or "").strip()
        if text.isdigit() and int(text) < NO_LIMIT_BYTES:
            return int(text)
    return None


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """The `name: value` lines of a file in proc."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _kib(value: str | None) -> int | None:
    return int(value.split()[0]) * BYTES_PER_KIB if value else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
