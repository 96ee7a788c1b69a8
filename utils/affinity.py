"""Which processors a training process runs on: those beside its GPU, shared out among the processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.machine import read_gpus, usable_cpus, visible_gpus

ROOT = Path("/")
AUTO, DISABLED, DEFAULT = "auto", "disabled", "socket_unique_contiguous"
CHOICES = (
    AUTO,
    "socket",
    "socket_single",
    "socket_single_unique",
    "socket_unique_interleaved",
    DEFAULT,
    DISABLED,
)
OLD_SPELLINGS = {  # of NVIDIA's nnU-Net, whose parser and function disagreed about the names
    "single": "socket_single",
    "single_single": "socket_single",
    "single_single_unique": "socket_single_unique",
    "single_unique": "socket_single_unique",
    "socket_unique_continuous": DEFAULT,
}
# What the first process was allowed: Lightning starts the others from it, after it has narrowed itself.
ALLOWED_VARIABLE = "NNUNET_ALLOWED_CPUS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A physical core: its logical processors that may be used, lowest first, and its socket."""

    threads: tuple[int, ...]
    socket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The usable cores, and for each GPU of the run the logical processors beside it (None: not known)."""

    cores: tuple[Core, ...]
    near: tuple[frozenset[int] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The logical processors for one process; None leaves them as they are. `reason` is a sentence."""

    cpus: frozenset[int] | None
    reason: str


def resolve_choice(text: str) -> str:
    """The choice that `text` stands for, old spellings included; UserError if there is none."""
    choice = OLD_SPELLINGS.get(text, text)
    if choice not in CHOICES:
        raise UserError(f"--affinity should be one of {', '.join(CHOICES)}, got {text!r}.")
    return choice


def place(choice: str, topology: Topology, local_rank: int) -> Placement:
    """Where the process of GPU `local_rank` runs.

    auto: as socket_unique_contiguous where the processors beside every GPU are known, else nothing.
    socket: all processors beside the GPU. socket_single: the first processor of the first core of these.
    socket_single_unique: one processor, of a core that no other process has. socket_unique_interleaved and
    socket_unique_contiguous: an equal share of whole cores, every n-th or a run of neighbours.
    disabled: nothing.

    A GPU whose neighbours are not known counts as beside all cores. Where there are fewer cores than GPUs to
    share them, each process gets all cores beside its GPU. `reason` says so in both cases.
    """
    if not 0 <= local_rank < max(len(topology.near), 1):
        raise ValueError(f"local_rank should be below {len(topology.near)}, got {local_rank}.")
    choice = resolve_choice(choice)
    if choice == DISABLED:
        return Placement(cpus=None, reason="Processors are not assigned: --affinity disabled.")
    if not topology.near or not topology.cores:
        return Placement(cpus=None, reason="Processors are not assigned: no GPU to be near to.")
    known = all(beside is not None for beside in topology.near)
    if choice == AUTO and not known:
        return Placement(
            cpus=None, reason="Processors are not assigned: which lie beside a GPU is not known."
        )
    name = DEFAULT if choice == AUTO else choice
    note = "" if known else " Which lie beside a GPU is not known: all count as near."
    pools = _pools(topology)
    if name.startswith("socket_unique") or name == "socket_single_unique":
        shares = _shares(pools, interleaved=name.endswith("interleaved"))
        if not all(shares):
            note += f" There are fewer cores than GPUs: {name} falls back to socket."
            shares, name = pools, "socket"
    else:
        shares = pools
    threads = _threads(shares[local_rank], single="single" in name)
    reason = f"GPU {local_rank} runs on processors {format_cpus(threads)} ({name}).{note}"
    return Placement(cpus=threads, reason=reason)


def _pools(topology: Topology) -> tuple[tuple[Core, ...], ...]:
    """The cores beside each GPU; all cores where none of them is known or usable."""
    pools = []
    for beside in topology.near:
        cores = tuple(core for core in topology.cores if beside and not beside.isdisjoint(core.threads))
        pools.append(cores or topology.cores)
    return tuple(pools)


def _shares(pools: Sequence[tuple[Core, ...]], *, interleaved: bool) -> tuple[tuple[Core, ...], ...]:
    """Disjoint sets of whole cores, one per GPU; GPUs with the same neighbours share them equally.

    Smaller pools choose first, so that a GPU beside everything does not take what another one is confined to.
    """
    taken: set[Core] = set()
    shares: dict[int, tuple[Core, ...]] = {}
    for pool in sorted(set(pools), key=lambda cores: (len(cores), cores[0].threads)):
        members = [index for index, other in enumerate(pools) if other == pool]
        free = [core for core in pool if core not in taken]
        for turn, index in enumerate(members):
            if interleaved:
                part = free[turn :: len(members)]
            else:
                start, stop = (turn * len(free) // len(members), (turn + 1) * len(free) // len(members))
                part = free[start:stop]
            shares[index] = tuple(part)
            taken.update(part)
    return tuple(shares[index] for index in range(len(pools)))


def _threads(cores: Iterable[Core], *, single: bool) -> frozenset[int]:
    if single:
        return frozenset({min(core.threads[0] for core in cores)})
    return frozenset(thread for core in cores for thread in core.threads)


def read_topology(bus_ids: Sequence[str | None], allowed: frozenset[int], root: Path = ROOT) -> Topology:
    """The cores among the `allowed` processors, and what lies beside the GPUs at these PCI addresses.

    From sysfs; `root` is the folder that holds sys. On a machine with one socket every core is beside every
    GPU.
    """
    folder = root / "sys/devices/system/cpu"
    cores: dict[tuple[int, ...], Core] = {}
    for cpu in sorted(allowed):
        about = folder / f"cpu{cpu}" / "topology"
        siblings = parse_cpus(_text(about / "thread_siblings_list")) or frozenset({cpu})
        socket = _text(about / "physical_package_id")
        threads = tuple(sorted(siblings & allowed)) or (cpu,)
        cores[threads] = Core(threads=threads, socket=int(socket) if socket.lstrip("-").isdigit() else 0)
    ordered = tuple(sorted(cores.values(), key=lambda core: (core.socket, core.threads)))
    near = tuple(_beside(bus_id, allowed, root) for bus_id in bus_ids)
    if len({core.socket for core in ordered}) == 1:
        near = tuple(beside or allowed for beside in near)
    return Topology(cores=ordered, near=near)


def _beside(bus_id: str | None, allowed: frozenset[int], root: Path) -> frozenset[int] | None:
    """The allowed processors beside the device; None where the system does not tell or none is allowed."""
    if bus_id is None:
        return None
    domain, _, rest = bus_id.lower().partition(":")
    device = root / "sys/bus/pci/devices" / f"{domain[-4:]:0>4}:{rest}"  # NVML writes eight digits
    node = _text(device / "numa_node")
    listed = parse_cpus(_text(device / "local_cpulist"))
    if not listed and node.isdigit():
        listed = parse_cpus(_text(root / f"sys/devices/system/node/node{node}/cpulist"))
    return (listed & allowed) or None


def set_affinity(choice: str, local_rank: int, gpus: int) -> Placement:
    """Restrict this process, and the threads it starts from now on, to the processors of its GPU.

    `gpus` is the number of the run's processes on this machine (0: no GPU). Call it before threads are
    started: running ones keep their processors. What cannot be done is no error; `reason` says it.
    """
    choice = resolve_choice(choice)
    if choice == DISABLED or gpus < 1:
        return place(choice, Topology(cores=(), near=()), 0)
    if not hasattr(os, "sched_setaffinity"):
        return Placement(cpus=None, reason="Processors are not assigned: this system has no call for it.")
    allowed = parse_cpus(os.environ.get(ALLOWED_VARIABLE, "")) or usable_cpus()
    os.environ[ALLOWED_VARIABLE] = format_cpus(allowed)
    visible = visible_gpus(read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus > 1 and len(visible) < gpus:
        # A launcher has shown each process its own GPU only: the others' are not known.
        bus_ids: list[str | None] = [None] * gpus
    else:
        bus_ids = [visible[index].bus_id if index < len(visible) else None for index in range(gpus)]
    placement = place(choice, read_topology(bus_ids, allowed), local_rank)
    if placement.cpus is None:
        return placement
    try:
        os.sched_setaffinity(0, placement.cpus)
    except OSError as error:
        return Placement(cpus=None, reason=f"Processors are not assigned: the system refused ({error}).")
    return placement


def parse_cpus(text: str) -> frozenset[int]:
    """The numbers of a list such as 0-3,8 as the kernel writes it; empty for an empty text."""
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def format_cpus(cpus: Iterable[int]) -> str:
    """The numbers as the kernel writes them: runs joined, as in 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
