"""Processes get the processors beside their GPU, on made-up machines that can be checked with a pencil."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from utils import affinity
from utils.affinity import (
    CHOICES,
    Core,
    Topology,
    format_cpus,
    parse_cpus,
    place,
    read_topology,
    resolve_choice,
)
from utils.errors import UserError
from utils.machine import Gpu, GpuList

# Two sockets of 32 cores with two threads: core c has the processors c and c + 64. GPUs 0-3 are on socket 0.
BIG = Topology(
    cores=tuple(Core(threads=(core, core + 64), socket=core // 32) for core in range(64)),
    near=(*[parse_cpus("0-31,64-95")] * 4, *[parse_cpus("32-63,96-127")] * 4),
)
UNIQUE = ("socket_single_unique", "socket_unique_interleaved", "socket_unique_contiguous")


def cpus(choice: str, topology: Topology, rank: int) -> str:
    return format_cpus(place(choice, topology, rank).cpus or ())


@pytest.mark.parametrize(
    ("choice", "first", "sixth"),
    [
        ("socket", "0-31,64-95", "32-63,96-127"),
        ("socket_single", "0", "32"),
        ("socket_single_unique", "0", "40"),
        ("socket_unique_contiguous", "0-7,64-71", "40-47,104-111"),
        ("auto", "0-7,64-71", "40-47,104-111"),
        (
            "socket_unique_interleaved",
            "0,4,8,12,16,20,24,28,64,68,72,76,80,84,88,92",
            "33,37,41,45,49,53,57,61,97,101,105,109,113,117,121,125",
        ),
        ("disabled", "", ""),
    ],
)
def test_two_sockets_and_eight_gpus(choice: str, first: str, sixth: str) -> None:
    assert (cpus(choice, BIG, 0), cpus(choice, BIG, 5)) == (first, sixth)


@pytest.mark.parametrize("choice", UNIQUE)
def test_no_two_processes_share_a_core(choice: str) -> None:
    shares = [place(choice, BIG, rank).cpus or frozenset() for rank in range(8)]
    cores = [{cpu % 64 for cpu in share} for share in shares]
    assert all(first.isdisjoint(second) for first, second in combinations(cores, 2))
    assert all(share <= (BIG.near[rank] or frozenset()) for rank, share in enumerate(shares))


def test_a_share_keeps_both_threads_of_a_core() -> None:
    share = place("socket_unique_contiguous", BIG, 2).cpus or frozenset()
    assert {cpu ^ 64 for cpu in share} == share


def test_three_gpus_share_four_cores_without_a_rest() -> None:
    cores = tuple(Core(threads=(core,), socket=0) for core in range(4))
    topology = Topology(cores=cores, near=(frozenset(range(4)),) * 3)
    assert [cpus("socket_unique_contiguous", topology, rank) for rank in range(3)] == ["0", "1", "2-3"]


def test_a_gpu_beside_everything_leaves_the_others_theirs() -> None:
    cores = tuple(Core(threads=(core,), socket=core // 2) for core in range(4))
    topology = Topology(cores=cores, near=(frozenset(range(4)), frozenset({2, 3})))
    assert [cpus("socket_unique_contiguous", topology, rank) for rank in range(2)] == ["0-1", "2-3"]


def test_more_gpus_than_cores_share_and_the_sentence_says_so() -> None:
    topology = Topology(cores=(Core(threads=(0, 1), socket=0),), near=(frozenset({0, 1}),) * 2)
    placement = place("socket_unique_contiguous", topology, 1)
    assert placement.cpus == {0, 1}
    assert "fewer cores than GPUs" in placement.reason
    assert "falls back to socket" in placement.reason


def test_unknown_neighbours_stop_the_default_and_are_said_otherwise() -> None:
    unknown = Topology(cores=BIG.cores, near=(None, None))
    assert place("auto", unknown, 0).cpus is None
    asked = place("socket_unique_contiguous", unknown, 1)
    assert format_cpus(asked.cpus or ()) == "32-63,96-127"
    assert "not known" in asked.reason


@pytest.mark.parametrize("choice", CHOICES)
def test_a_machine_without_gpu_is_left_alone(choice: str) -> None:
    placement = place(choice, Topology(cores=BIG.cores, near=()), 0)
    assert placement.cpus is None
    assert "not assigned" in placement.reason


def test_a_rank_without_gpu_is_a_defect() -> None:
    with pytest.raises(ValueError, match="below 8, got 8"):
        place("socket", BIG, 8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("single", "socket_single"),
        ("single_single", "socket_single"),
        ("single_single_unique", "socket_single_unique"),
        ("socket_unique_continuous", "socket_unique_contiguous"),
        ("socket", "socket"),
    ],
)
def test_old_spellings_are_accepted(old: str, new: str) -> None:
    assert resolve_choice(old) == new


def test_another_word_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="socket_unique_interleaved.*got 'numa'"):
        resolve_choice("numa")


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0-1,3-4\n", {0, 1, 3, 4})]
)
def test_kernel_lists_are_read_and_written(text: str, numbers: set[int]) -> None:
    assert parse_cpus(text) == numbers
    assert parse_cpus(format_cpus(numbers)) == numbers


def make_machine(root: Path, *, sockets: int, cores: int) -> Path:
    """A sys folder: core c of `cores` per socket has the processors c and c + total."""
    total = sockets * cores
    for cpu in range(2 * total):
        about = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        about.mkdir(parents=True)
        (about / "thread_siblings_list").write_text(f"{cpu % total},{cpu % total + total}\n")
        (about / "physical_package_id").write_text(f"{cpu % total // cores}\n")
    return root


def add_gpu(root: Path, address: str, *, local: str | None, node: str = "-1") -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "numa_node").write_text(f"{node}\n")
    if local is not None:
        (device / "local_cpulist").write_text(f"{local}\n")


def test_the_topology_is_read_from_sysfs(tmp_path: Path) -> None:
    make_machine(tmp_path, sockets=2, cores=2)
    add_gpu(tmp_path, "0000:1b:00.0", local="0-1,4-5")
    add_gpu(tmp_path, "0000:b1:00.0", local=None, node="1")
    node = tmp_path / "sys/devices/system/node/node1"
    node.mkdir(parents=True)
    (node / "cpulist").write_text("2-3,6-7\n")
    topology = read_topology(["00000000:1B:00.0", "0000:B1:00.0"], frozenset(range(8)), tmp_path)
    assert topology.cores == tuple(Core(threads=(c, c + 4), socket=c // 2) for c in range(4))
    assert topology.near == (frozenset({0, 1, 4, 5}), frozenset({2, 3, 6, 7}))


def test_processors_outside_the_container_are_not_used(tmp_path: Path) -> None:
    make_machine(tmp_path, sockets=2, cores=4)
    add_gpu(tmp_path, "0000:1b:00.0", local="0-3,8-11")
    topology = read_topology(["0000:1b:00.0"], parse_cpus("2-5,10"), tmp_path)
    assert [core.threads for core in topology.cores] == [(2, 10), (3,), (4,), (5,)]
    assert cpus("socket", topology, 0) == "2-3,10"


def test_a_gpu_far_from_all_allowed_processors_is_unknown(tmp_path: Path) -> None:
    make_machine(tmp_path, sockets=2, cores=4)
    add_gpu(tmp_path, "0000:1b:00.0", local="0-3,8-11")
    topology = read_topology(["0000:1b:00.0"], parse_cpus("3-5"), tmp_path)
    assert cpus("socket", topology, 0) == "3"
    assert read_topology(["0000:1b:00.0"], parse_cpus("3-5,11"), tmp_path).near == (frozenset({3, 11}),)
    away = read_topology([None, "0000:1b:00.0"], parse_cpus("4-7,12-15,0"), tmp_path)
    assert away.near == (None, frozenset({0}))


def test_on_one_socket_every_core_is_near(tmp_path: Path) -> None:
    make_machine(tmp_path, sockets=1, cores=2)
    topology = read_topology([None], frozenset(range(4)), tmp_path)
    assert topology.near == (frozenset(range(4)),)


def test_the_process_and_the_ones_it_starts_are_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_machine(tmp_path, sockets=1, cores=2)
    applied: list[frozenset[int]] = []
    monkeypatch.setattr(affinity, "read_topology", lambda ids, allowed: read_topology(ids, allowed, tmp_path))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, chosen: applied.append(chosen))
    monkeypatch.setattr(affinity, "usable_cpus", lambda: frozenset(range(4)))
    monkeypatch.setattr(affinity, "read_gpus", lambda: GpuList(source="nvml", gpus=(gpu(0), gpu(1))))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(affinity.ALLOWED_VARIABLE, "")
    affinity.set_affinity("auto", 0, 2)
    # A process started now inherits the narrowed processors, and the variable.
    monkeypatch.setattr(affinity, "usable_cpus", lambda: applied[0])
    affinity.set_affinity("auto", 1, 2)
    assert applied == [frozenset({0, 2}), frozenset({1, 3})]


def gpu(index: int) -> Gpu:
    return Gpu(
        index=index,
        name="GPU",
        memory_bytes=None,
        compute_capability=None,
        driver=None,
        bus_id=None,
        uuid=None,
    )


def test_a_refusal_of_the_system_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _cpus: frozenset[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv(affinity.ALLOWED_VARIABLE, "")
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    placement = affinity.set_affinity("socket_single", 0, 1)
    assert placement.cpus is None
    assert "the system refused" in placement.reason


def test_a_real_process_is_restricted() -> None:
    code = (
        "import os; from utils.affinity import set_affinity; "
        "placement = set_affinity('socket_single', 0, 1); "
        "print(os.sched_getaffinity(0) == placement.cpus, len(placement.cpus))"
    )
    root = Path(affinity.__file__).resolve().parents[1]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert answer.stdout.split() == ["True", "1"]
