"""The processes that measure together: how they start, their places, and what they tell each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, final

import torch
from lightning_fabric import Fabric
from torch import distributed

from nnunet.training.trainer import Machine, choose_machine
from scripts.benchmark_options import BenchmarkOptions
from scripts.process_place import shard_of
from scripts.run_options import RunOptions
from utils.affinity import resolve_choice, set_affinity
from utils.errors import EnvironmentFault
from utils.run_log import say

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process's place among those that measure at the same time."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, found: T) -> list[T]:
        """What every process found, by rank."""
        if self.size == 1:
            return [found]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, found)
        return everyone

    def say(self, message: str) -> None:
        """One process speaks for all."""
        if self.rank == 0:
            say(message)


ALONE = Team()


def run_options_of(options: BenchmarkOptions, steps: int = 0) -> RunOptions:
    """What main.py would be told to do the measured work, in one epoch of so many steps."""
    return RunOptions(
        data=options.data,
        task=options.task,
        dim=options.dim,
        plan=options.plan,
        fold=options.fold or 0,
        seed=options.seed,
        device=options.device,
        gpus=options.gpus,
        nodes=options.nodes,
        affinity=options.affinity,
        loader=replace(options.loader, steps_per_epoch=steps),
        network=options.network,
        loss=options.loss,
        optimiser=options.optimiser,
    )


def machine_of(options: BenchmarkOptions) -> Machine:
    """The devices of the measurement."""
    return choose_machine(options.device, options.gpus, options.nodes)


@contextmanager
def started_team(options: BenchmarkOptions) -> Iterator[Team]:
    """All processes, connected: torchrun or srun started them, or Lightning's launcher does it now.

    EnvironmentFault where a launcher started another number of processes than --gpus times --nodes.
    """
    machine = machine_of(options)
    shard = shard_of(run_options_of(options), machine)
    team = Team(rank=shard.rank, size=shard.world_size)
    if team.size > 1:
        _connect(team, machine)
    _bind_to_processors(options, shard.device_id, team)
    yield team
    if team.size > 1:
        team.wait()  # nobody leaves while another still counts on it
        distributed.destroy_process_group()


def _connect(team: Team, machine: Machine) -> None:
    for name in ("pytorch_lightning", "lightning_fabric"):  # their greetings
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="gpu" if machine.device == "cuda" else "cpu",
        devices=machine.gpus,
        num_nodes=machine.nodes,
        strategy="ddp",
    )
    fabric.launch()
    if (fabric.global_rank, fabric.world_size) != (team.rank, team.size):
        raise EnvironmentFault(
            f"Lightning runs this process as rank {fabric.global_rank} of {fabric.world_size}, but its "
            f"launcher numbered it {team.rank} of {team.size}. Give --gpus and --nodes as the launcher has "
            "them."
        )


def _bind_to_processors(options: BenchmarkOptions, device_id: int | None, team: Team) -> None:
    """--affinity, as training does it; a wrong name is refused without a GPU too."""
    choice = resolve_choice(options.affinity)
    if device_id is not None:
        torch.cuda.set_device(device_id)
        team.say(set_affinity(choice, device_id, options.gpus).reason)
