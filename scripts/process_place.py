"""Which part of the work this process does, as its launcher numbered it."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from data_loading.loader import Shard
from nnunet.training.trainer import Machine
from scripts.run_options import RunOptions
from utils.errors import EnvironmentFault, UserError

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment)


def shard_of(options: RunOptions, machine: Machine) -> Shard:
    """This process's part of the work, as torchrun, SLURM's srun or Lightning's launcher numbered it."""
    if options.loader.num_workers < 1 or options.loader.prefetch < 1:
        raise UserError(
            f"--num_workers and --prefetch have to be at least 1, got {options.loader.num_workers} and "
            f"{options.loader.prefetch}."
        )
    world_size = machine.gpus * machine.nodes
    rank, local = _place_among(machine) if world_size > 1 else (0, _only_place())
    has_gpu = machine.device == "cuda"
    place = options.loader.augment_in
    on_host = place == "host" or (place == "auto" and not has_gpu)
    if options.loader.residency == "device":
        _refuse_absent_device(has_gpu=has_gpu, on_host=on_host)
    return Shard(
        rank=rank,
        world_size=world_size,
        device_id=local if has_gpu else None,
        num_threads=max(1, min(options.loader.num_workers, os.cpu_count() or 1)),
        prefetch=options.loader.prefetch,
        on_host=on_host,
        channels_last=options.network.layout == "NDHWC",
    )


def _refuse_absent_device(*, has_gpu: bool, on_host: bool) -> None:
    if not has_gpu:
        raise UserError(
            "--residency device keeps the volumes in GPU memory, and this run is on the CPU. "
            "Use --residency memory, or leave it out."
        )
    if on_host:
        raise UserError(
            "--residency device cuts patches on the GPU, but --augment_in host augments them on the CPU. "
            "Use --augment_in graph, or --residency memory."
        )


def _place_among(machine: Machine) -> tuple[int, int]:
    """Rank over all nodes and on this one; launchers are asked in Lightning's order, with its conditions."""
    try:
        launched = next((kind() for kind in LAUNCHERS if kind.detect()), None)
    except RuntimeError as error:  # srun without --ntasks-per-node
        raise EnvironmentFault(str(error)) from error
    if launched is None:  # Lightning starts the processes of a node; NODE_RANK numbers the nodes
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return int(os.environ.get("NODE_RANK", "0")) * machine.gpus + local, local
    if launched.world_size() != machine.gpus * machine.nodes:
        raise EnvironmentFault(
            f"{launched.world_size()} processes were started, but --gpus {machine.gpus} times --nodes "
            f"{machine.nodes} is {machine.gpus * machine.nodes}. Give both as the launcher has them."
        )
    return launched.global_rank(), launched.local_rank()


def _only_place() -> int:
    """0; EnvironmentFault where torchrun started several processes, each of which would train alone."""
    if TorchElasticEnvironment.detect() and (started := TorchElasticEnvironment().world_size()) > 1:
        raise EnvironmentFault(
            f"torchrun started {started} processes, but --gpus times --nodes is 1. On the CPU, add "
            f"--device cpu; then give --gpus as --nproc_per_node has it, and --nodes as --nnodes."
        )
    return 0
