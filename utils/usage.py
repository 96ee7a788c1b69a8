"""What a process has used so far: time, processor, bytes read, memory; differences of it are measurements."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

CLEAR_FILE = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # what proc(5) has written to it
IO_FILE = Path("/proc/self/io")
STATUS_FILE = Path("/proc/self/status")
BYTES_PER_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Readings that only grow; the bytes are None where the system keeps no account."""

    wall_s: float
    process_s: float  # all threads of this process
    machine_s: float  # all processors of the machine, idle time left out
    device_bytes: int | None  # fetched from a storage device, page faults and read-ahead included
    call_bytes: int | None  # asked for by read calls, from a device or not

    def since(self, earlier: Usage) -> Usage:
        """What was used in between."""
        return Usage(
            wall_s=self.wall_s - earlier.wall_s,
            process_s=self.process_s - earlier.process_s,
            machine_s=self.machine_s - earlier.machine_s,
            device_bytes=_minus(self.device_bytes, earlier.device_bytes),
            call_bytes=_minus(self.call_bytes, earlier.call_bytes),
        )


def usage_now() -> Usage:
    """The readings of this moment."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests are counted within user and nice already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    account = _account()
    return Usage(
        machine_s=sum(times) - idle - guests,
        device_bytes=account.get("read_bytes"),
        call_bytes=account.get("rchar"),
        process_s=time.process_time(),
        wall_s=time.perf_counter(),
    )


def peak_resident_bytes() -> int:
    """The most memory this process has held, mapped pages of files included."""
    if STATUS_FILE.is_file():
        for line in STATUS_FILE.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * BYTES_PER_KIB
    return int(psutil.Process().memory_info().rss)


def forget_peak_resident() -> bool:
    """From now on the peak of resident memory is counted anew; False where the system cannot do that."""
    try:
        CLEAR_FILE.write_text(FORGET_PEAK, encoding="utf-8")
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def _account() -> dict[str, int]:
    try:
        lines = IO_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or a container that hides it
        return {}
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}


def _minus(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier
