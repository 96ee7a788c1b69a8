"""The processes that measure together, and the run that their measurement stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import distributed

from nnunet.training.trainer import Machine, choose_machine
from scripts.benchmark_options import BenchmarkOptions
from scripts.process_place import shard_of
from scripts.process_team import Team, connected
from scripts.run_options import RunOptions
from utils.affinity import resolve_choice, set_affinity


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
    with connected(team, machine):
        _bind_to_processors(options, shard.device_id, team)
        yield team
        if team.size > 1:
            team.wait()  # nobody leaves while another still counts on it
            distributed.destroy_process_group()


def _bind_to_processors(options: BenchmarkOptions, device_id: int | None, team: Team) -> None:
    """--affinity, as training does it; a wrong name is refused without a GPU too."""
    choice = resolve_choice(options.affinity)
    if device_id is not None:
        torch.cuda.set_device(device_id)
        team.say(set_affinity(choice, device_id, options.gpus).reason)
