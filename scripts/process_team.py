"""Processes that work together before a trainer is there: how they start, and what they tell each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, final

from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed

from nnunet.training.trainer import Machine
from utils.errors import EnvironmentFault
from utils.run_log import say

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process's place among those that work at the same time."""

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


@contextmanager
def connected(team: Team, machine: Machine) -> Iterator[Team]:
    """The team, connected; Lightning's launcher starts the processes that torchrun or srun did not.

    A trainer that is built later finds the connection and uses it. If the block fails, the processes that
    were started here end with it. EnvironmentFault where a launcher numbered this process otherwise.
    """
    if team.size == 1:
        yield team
        return
    fabric = _connect(team, machine)
    try:
        yield team
    except BaseException:
        launcher = fabric.strategy.launcher
        # They would wait for this one until their connection times out.
        for process in launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else ():
            process.kill()
        raise


def _connect(team: Team, machine: Machine) -> Fabric:
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
    return fabric
