"""Options and a plan become the parts of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet.training.trainer import Machine
from scripts.fold_data import prepared_folder
from scripts.process_place import shard_of
from scripts.run_options import RunOptions
from utils.errors import DatasetError, EnvironmentFault


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("04_3d", "4"),
        ("04_3d", "04"),
        ("04_3d", "Task04_Hippocampus"),
        ("010_3d", "10"),
        ("010_3d", "Dataset010_LIDCNodules"),
        ("made_3d", "made"),
    ],
)
def test_a_task_is_found_by_number_or_name(tmp_path: Path, folder: str, task: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "plan.json").touch()
    assert prepared_folder(RunOptions(data=tmp_path, task=task)) == tmp_path / folder


def test_a_prepared_folder_may_be_given_itself(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    assert prepared_folder(RunOptions(data=tmp_path, task="whatever")) == tmp_path


def test_the_other_dimension_is_another_folder(tmp_path: Path) -> None:
    (tmp_path / "04_3d").mkdir()
    (tmp_path / "04_3d" / "plan.json").touch()
    with pytest.raises(DatasetError, match="no preprocessed folder 04_2d.*--dim 2"):
        prepared_folder(RunOptions(data=tmp_path, task="04", dim=2))


def test_one_process_is_rank_zero_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert shard_of(RunOptions(), Machine(device="cpu")).rank == 0


def test_the_rank_counts_over_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    shard = shard_of(RunOptions(), Machine(device="cuda", gpus=4, nodes=2))
    assert (shard.rank, shard.world_size, shard.device_id) == (6, 8, 2)


TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "a"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
BY_LIGHTNING = {"NODE_RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture
def launched_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Nothing but these variables says who started this process."""

    def set_variables(variables: dict[str, str]) -> None:
        for name in {*TORCHRUN, *SRUN, *BY_LIGHTNING, "SLURM_JOB_NAME"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        (TORCHRUN, 5),
        (SRUN, 5),
        (BY_LIGHTNING, 5),
        (SRUN | TORCHRUN | {"RANK": "6"}, 6),  # torchrun inside a SLURM job
        (SRUN | BY_LIGHTNING | {"SLURM_JOB_NAME": "bash"}, 5),  # a shell of salloc: all inherit its PROCID
        ({"RANK": "0", "WORLD_SIZE": "1"} | BY_LIGHTNING, 5),  # variables of a container, not of torchrun
    ],
)
def test_the_rank_is_the_launchers(
    launched_as: Callable[[dict[str, str]], None], variables: dict[str, str], rank: int
) -> None:
    launched_as(variables)
    shard = shard_of(RunOptions(), Machine(device="cuda", gpus=4, nodes=2))
    assert (shard.rank, shard.world_size, shard.device_id) == (rank, 8, 1)


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_another_number_of_processes_than_asked_for_is_refused(
    launched_as: Callable[[dict[str, str]], None], variables: dict[str, str]
) -> None:
    launched_as(variables)
    with pytest.raises(EnvironmentFault, match="8 processes were started, but --gpus 2 times --nodes 2 is 4"):
        shard_of(RunOptions(), Machine(device="cpu", gpus=2, nodes=2))


def test_srun_without_tasks_per_node_says_so(launched_as: Callable[[dict[str, str]], None]) -> None:
    launched_as({name: value for name, value in SRUN.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(EnvironmentFault, match="ntasks-per-node=8"):
        shard_of(RunOptions(), Machine(device="cpu", gpus=4, nodes=2))


def test_one_device_alone_is_refused_under_torchrun_but_may_be_a_task_of_srun(
    launched_as: Callable[[dict[str, str]], None],
) -> None:
    launched_as(TORCHRUN)
    with pytest.raises(EnvironmentFault, match="torchrun started 8 processes"):
        shard_of(RunOptions(), Machine(device="cpu"))
    launched_as(SRUN)  # one fold per task
    assert shard_of(RunOptions(), Machine(device="cpu")).rank == 0
