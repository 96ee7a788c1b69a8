"""Weights and card in one safetensors file, read as a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import load_model, model_card, read_checkpoint
from nnunet.training.portable import read_portable, write_portable
from nnunet.training.trainer import kept_checkpoints
from nnunet.training.warm_start import load_fitting
from utils.contracts import Plan
from utils.errors import DatasetError


@pytest.fixture
def network(make_plan: Callable[..., Plan]) -> MultiTaskUNet:
    torch.manual_seed(3)
    return MultiTaskUNet(make_plan(), Architecture()).eval()


@pytest.fixture
def portable(network: MultiTaskUNet, make_plan: Callable[..., Plan], tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "model.safetensors"
    write_portable(path, network.state_dict(), model_card(make_plan(), Architecture(), ["a", "b"]))
    return path


def test_the_model_comes_back_bit_by_bit(portable: Path, network: MultiTaskUNet) -> None:
    model = load_model(portable, torch.device("cpu"))
    assert model.training_cases == ("a", "b")
    image = torch.randn(1, 1, *model.plan.patch)
    assert torch.equal(model.network(image).label_logits[0], network(image).label_logits[0])


def test_it_is_among_the_checkpoints_of_its_results(portable: Path) -> None:
    assert kept_checkpoints(portable.parent.parent) == [portable]


def test_a_training_starts_from_it(portable: Path, make_plan: Callable[..., Plan]) -> None:
    other = MultiTaskUNet(make_plan(), Architecture())
    start = load_fitting(portable, other)
    assert (start.num_loaded, start.missing, start.unused) == (len(other.state_dict()), (), ())
    assert (start.dataset, start.training_cases) == ("Dataset001_Tiny", ("a", "b"))


def test_weights_that_share_memory_are_written_each(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    write_portable(tmp_path / "w.safetensors", {"a": weight, "b": weight.T, "c": weight[0]}, {"format": 1})
    card, found = read_portable(tmp_path / "w.safetensors")
    assert card == {"format": 1}
    assert torch.equal(found["b"], weight.T)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x10\0\0\0\0\0\0\0{}", b"\xff" * 64])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="no whole safetensors file"):
        read_checkpoint(path)


def test_a_cut_off_file_is_told(portable: Path) -> None:
    portable.write_bytes(portable.read_bytes()[:-4])
    with pytest.raises(DatasetError, match="no whole safetensors file"):
        read_checkpoint(portable)


def test_weights_of_another_program_are_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DatasetError, match="has no model card"):
        read_checkpoint(tmp_path / "model.safetensors")
