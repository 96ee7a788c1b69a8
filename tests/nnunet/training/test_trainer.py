"""Devices, precision and names of checkpoints."""

from pathlib import Path

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet.options import TrainingOptions
from nnunet.training.trainer import (
    Machine,
    best_checkpoint,
    build_trainer,
    check_ranks,
    choose_machine,
    epochs_of,
    last_checkpoint,
    precision_of,
    refuse_impossible,
)
from tests.nnunet.training.batch_norm_run import Step
from utils.errors import EnvironmentFault, UserError


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert choose_machine("auto", 4, 1) == Machine(device="cpu", gpus=1, nodes=1)


@pytest.mark.flag("gpus")
@pytest.mark.flag("nodes")
@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_the_gpus_that_were_asked_for() -> None:
    assert choose_machine("auto", 2, 3) == Machine(device="cuda", gpus=2, nodes=3)


def test_on_the_cpu_gpus_are_processes() -> None:
    assert choose_machine("cpu", 2, 1) == Machine(device="cpu", gpus=2, nodes=1)


@pytest.mark.parametrize(("gpus", "nodes"), [(0, 1), (1, 0)])
def test_no_device_at_all_is_refused(gpus: int, nodes: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        choose_machine("cpu", gpus, nodes)


@pytest.mark.usefixtures("no_gpu")
def test_a_missing_gpu_is_a_fault_of_the_environment() -> None:
    with pytest.raises(EnvironmentFault, match="--gpus 1 were asked for, 0 are visible"):
        choose_machine("cuda", 1, 1)


@pytest.mark.usefixtures("two_gpus")
def test_more_gpus_than_there_are_is_a_fault_too() -> None:
    with pytest.raises(EnvironmentFault, match="--gpus 3 were asked for, 2 are visible"):
        choose_machine("auto", 3, 1)


@pytest.mark.flag("time_budget")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (TrainingOptions(time_budget=5), "--time_budget works on one device"),
    ],
)
def test_what_two_processes_cannot_train_is_refused(options: TrainingOptions, told: str) -> None:
    with pytest.raises(UserError, match=told):
        refuse_impossible(options, Machine(device="cpu", gpus=2), norm="instance")


@pytest.mark.flag("sync_batchnorm")
@pytest.mark.parametrize(
    ("machine", "norm", "told"),
    [
        (Machine(device="cuda", gpus=2), "instance", "--norm instance has none that go beyond a case"),
        (Machine(device="cuda"), "batch", "--gpus times --nodes is 1"),
        (Machine(device="cpu", gpus=2), "batch", "works on GPUs only"),
    ],
)
def test_batch_statistics_that_cannot_be_joined_are_refused(machine: Machine, norm: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        refuse_impossible(TrainingOptions(sync_batchnorm=True), machine, norm=norm)


@pytest.mark.flag("sync_batchnorm")
@pytest.mark.parametrize(("gpus", "nodes"), [(2, 1), (1, 2)])
def test_batch_statistics_of_several_gpus_can_be_joined(gpus: int, nodes: int) -> None:
    refuse_impossible(
        TrainingOptions(sync_batchnorm=True), Machine(device="cuda", gpus=gpus, nodes=nodes), norm="batch"
    )


@pytest.mark.flag("sync_batchnorm")
@pytest.mark.parametrize("is_on", [False, True])
def test_sync_batchnorm_exchanges_the_layers(tmp_path: Path, *, is_on: bool) -> None:
    options = TrainingOptions(sync_batchnorm=is_on)
    trainer = build_trainer(options, tmp_path, Machine(device="cpu", gpus=2), 0.0, [])
    exchange, module = trainer.strategy._layer_sync, Step()  # pyright: ignore[reportAttributeAccessIssue]
    exchanged = module if exchange is None else exchange.apply(module)
    kinds = {type(layer) for layer in exchanged.modules() if isinstance(layer, _BatchNorm)}
    assert kinds == {nn.SyncBatchNorm if is_on else nn.BatchNorm3d}


def test_without_amp_every_device_computes_in_single_precision() -> None:
    assert precision_of("cpu", amp=False) == precision_of("cuda", amp=False) == "32-true"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_amp_on_a_gpu_prefers_bfloat16(
    monkeypatch: pytest.MonkeyPatch, expected: str, *, supported: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)  # noqa: ARG005
    assert precision_of("cuda", amp=True) == expected


def test_amp_on_a_cpu_without_bfloat16_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert precision_of("cpu", amp=True) == "32-true"
    assert "--amp has no effect here" in capsys.readouterr().err


def test_max_epochs_wins_over_epochs() -> None:
    assert epochs_of(TrainingOptions(epochs=5)) == 5
    assert epochs_of(TrainingOptions(epochs=5, max_epochs=2)) == 2


def test_the_last_checkpoint_has_a_fixed_name() -> None:
    assert last_checkpoint(Path("results")) == Path("results/checkpoints/last.ckpt")


def plain_trainer(results: Path) -> lightning.Trainer:
    return build_trainer(TrainingOptions(epochs=1), results, Machine(device="cpu"), 12.0, [])


def test_a_loader_of_the_same_rank_is_accepted(tmp_path: Path) -> None:
    check_ranks(plain_trainer(tmp_path), rank=0, world_size=1)


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (0, 2), (1, 2)])
def test_a_loader_of_another_rank_or_world_is_refused(tmp_path: Path, rank: int, world_size: int) -> None:
    expected = f"process as rank 0 of 1, but its loader was built for rank {rank} of {world_size}"
    with pytest.raises(EnvironmentFault, match=expected):
        check_ranks(plain_trainer(tmp_path), rank=rank, world_size=world_size)


def test_the_best_checkpoint_is_that_of_the_best_score(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path)
    checkpoints = [item for item in trainer.checkpoint_callbacks if isinstance(item, ModelCheckpoint)]
    (best,) = [item for item in checkpoints if item.monitor]
    assert (best.monitor, best.mode) == ("val/score", "max")
    best.best_model_path = "epoch=3.ckpt"
    assert best_checkpoint(trainer, tmp_path) == Path("epoch=3.ckpt")
