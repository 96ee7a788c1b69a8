"""What a machine offers is read from proc and sys, containers and drivers included."""

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from utils import machine
from utils.machine import (
    GpuList,
    has_bfloat16,
    parse_smi,
    read_gpus,
    read_memory,
    read_processors,
    usable_cpus,
    visible_gpus,
)

SMI = (
    "NVIDIA H200, 143771, 9.0, 580.95.05, 00000000:18:00.0, GPU-aaaa\n"
    "Tesla V100, [N/A], 7.0, 580.95.05, 00000000:3B:00.0, GPU-bbbb\n"
)


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_memory_and_its_limit_under_cgroup_2(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo="MemTotal:       2048 kB\nMemAvailable:   1024 kB\n",
        proc__self__cgroup="0::/jobs/one\n",
        sys__fs__cgroup__jobs__memoryDOTmax="500000\n",
        sys__fs__cgroup__jobs__one__memoryDOTmax="max\n",
    )
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (2048 * 1024, 1024 * 1024)
    assert memory.container_limit_bytes == 500000  # of the folder above


def test_memory_limit_under_cgroup_1(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="4:memory:/docker/x\n3:cpu,cpuacct:/\n0::/\n",
        sys__fs__cgroup__memory__docker__x__memoryDOTlimit_in_bytes="700000\n",
        sys__fs__cgroup__memory__memoryDOTlimit_in_bytes="9223372036854771712\n",
    )
    assert read_memory(tmp_path).container_limit_bytes == 700000


def test_the_number_for_no_limit_under_cgroup_1_is_none(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="4:memory:/\n",
        sys__fs__cgroup__memory__memoryDOTlimit_in_bytes="9223372036854771712\n",
    )
    assert read_memory(tmp_path).container_limit_bytes is None


def test_a_machine_without_proc_has_unknown_memory(tmp_path: Path) -> None:
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.container_limit_bytes) == (None, None, None)


@pytest.mark.parametrize(("quota", "limit"), [("150000 100000", 1.5), ("max 100000", None)])
def test_processor_limit_under_cgroup_2(quota: str, limit: float | None, tmp_path: Path) -> None:
    # From inside a container the path is often the host's; the files are those of the mount.
    write(tmp_path, proc__self__cgroup="0::/docker/none\n", sys__fs__cgroup__cpuDOTmax=quota)
    assert read_processors(tmp_path).container_limit == limit


@pytest.mark.parametrize(("quota", "limit"), [("200000", 2.0), ("-1", None)])
def test_processor_limit_under_cgroup_1(quota: str, limit: float | None, tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="3:cpu,cpuacct:/\n",
        sys__fs__cgroup__cpu__cpuDOTcfs_quota_us=quota,
        sys__fs__cgroup__cpu__cpuDOTcfs_period_us="100000",
    )
    assert read_processors(tmp_path).container_limit == limit


@pytest.mark.parametrize(("flags", "has"), [("fpu avx512_bf16 sse", True), ("fpu avx512f", False)])
def test_bfloat16_of_the_processor_is_read_from_its_flags(flags: str, has: bool, tmp_path: Path) -> None:  # noqa: FBT001
    write(tmp_path, proc__cpuinfo=f"model name\t: A Processor\nflags\t\t: {flags}\n")
    processors = read_processors(tmp_path)
    assert (processors.model, processors.has_bfloat16) == ("A Processor", has)


def test_usable_processors_are_those_of_the_system() -> None:
    assert usable_cpus() == os.sched_getaffinity(0)
    assert read_processors().usable == len(os.sched_getaffinity(0))


def test_nvidia_smi_is_read() -> None:
    h200, v100 = parse_smi(SMI).gpus
    assert (h200.index, h200.name, h200.memory_bytes) == (0, "NVIDIA H200", 143771 * 1024**2)
    assert (h200.compute_capability, h200.driver, h200.bus_id) == ("9.0", "580.95.05", "00000000:18:00.0")
    assert (v100.index, v100.memory_bytes) == (1, None)
    assert (has_bfloat16(h200), has_bfloat16(v100)) == (True, False)


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("1", [1]),
        ("GPU-bb", [1]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-", []),
        ("MIG-1234", []),
    ],
)
def test_visible_devices_follow_cuda(variable: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(parse_smi(SMI), variable)] == indices


def fake_nvml(*, broken: bool) -> Any:
    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})

    def init() -> None:
        if broken:
            raise nvml.NVMLError

    nvml.nvmlInit, nvml.nvmlShutdown = init, lambda: None
    nvml.nvmlSystemGetDriverVersion = lambda: b"580.1"
    nvml.nvmlDeviceGetCount = lambda: 1
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetCudaComputeCapability = lambda _handle: (9, 0)
    nvml.nvmlDeviceGetName = lambda _handle: "H200"
    nvml.nvmlDeviceGetMemoryInfo = lambda _handle: types.SimpleNamespace(total=7)
    nvml.nvmlDeviceGetPciInfo = lambda _handle: types.SimpleNamespace(busId=b"0000:18:00.0")
    nvml.nvmlDeviceGetUUID = lambda _handle: "GPU-aaaa"
    return nvml


def test_nvml_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(broken=False))
    listed = read_gpus()
    assert listed.source == "nvml"
    assert (listed.gpus[0].name, listed.gpus[0].driver, listed.gpus[0].bus_id) == (
        "H200",
        "580.1",
        "0000:18:00.0",
    )


def test_nvidia_smi_answers_where_nvml_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(broken=True))
    answer = subprocess.CompletedProcess([], 0, stdout=SMI)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_args, **_options: answer)
    assert read_gpus().source == "nvidia-smi"
    assert len(read_gpus().gpus) == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        subprocess.CalledProcessError(9, "nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 1.0),
    ],
)
def test_no_driver_is_an_empty_list(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert read_gpus() == GpuList(source="none")
