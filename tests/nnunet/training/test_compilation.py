"""Compiled where that works, plain where it does not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from nnunet.training.compilation import compiled_or_plain
from utils.contracts import ModelOutput


class Doubling(nn.Module):
    """Twice its input; refuses inputs of the wrong length."""

    def forward(self, image: Tensor) -> ModelOutput:
        if len(image) != 2:
            raise ValueError("wrong length")
        return ModelOutput(label_logits=(2 * image,))


def replace_compiler(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[Any]:
    """Make torch.compile return a function that fails, or that works; the list counts its calls."""
    calls = []

    def compiled(network: nn.Module) -> Any:
        def forward(image: Tensor) -> ModelOutput:
            calls.append(image)
            if error:
                raise error
            return network(image)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    return calls


def test_a_failing_compiler_is_reported_once_and_never_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace_compiler(monkeypatch, TorchDynamoException("no compiler here\nmany details"))
    forward = compiled_or_plain(Doubling())
    answers = [forward(torch.ones(2)).label_logits[0].tolist() for _ in range(3)]
    assert answers == [[2, 2]] * 3
    assert len(calls) == 1
    printed = capsys.readouterr().err
    assert printed == "torch.compile failed (no compiler here); training goes on without it.\n"


def test_an_error_without_words_is_reported_by_its_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_compiler(monkeypatch, TorchDynamoException())
    compiled_or_plain(Doubling())(torch.ones(2))
    assert "(TorchDynamoException)" in capsys.readouterr().err


def test_a_working_compiler_is_used_every_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace_compiler(monkeypatch, None)
    forward = compiled_or_plain(Doubling())
    forward(torch.ones(2))
    forward(torch.ones(2))
    assert len(calls) == 2
    assert capsys.readouterr().err == ""


def test_a_mistake_in_the_data_surfaces_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_compiler(monkeypatch, None)
    with pytest.raises(ValueError, match="wrong length"):
        compiled_or_plain(Doubling())(torch.ones(3))
