"""--profile leaves a trace and a table, of few steps where there are few."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import final

import pytest
import pytorch_lightning as lightning
import torch
from torch import nn

from nnunet.training.profiling import Profiler, Window, choose_window


@final
class Batches:
    """A loader of so many equal batches."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.ones(2, 3)] * self.count)


@final
class TinyModule(lightning.LightningModule):
    """One linear layer; fails at the step of that number."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.layer, self.fails_at = nn.Linear(3, 1), fails_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == self.fails_at:
            raise ArithmeticError("stop here")
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(results: Path, steps: int, epochs: int = 1, fails_at: int = -1) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[Profiler(results)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=results,
    )
    with warnings.catch_warnings():
        # Lightning suggests worker processes and logging intervals, which these batches have no use for.
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*number of training batches.*")
        trainer.fit(TinyModule(fails_at), Batches(steps))


def recorded_steps(results: Path) -> int:
    events = json.loads((results / "profile/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    return sum(event.get("name") == "training_step" and event.get("ph") == "X" for event in events)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (250, Window(skipped=10, warm_up=2, recorded=20)),
        (32, Window(skipped=10, warm_up=2, recorded=20)),
        (25, Window(skipped=3, warm_up=2, recorded=20)),
        (5, Window(skipped=0, warm_up=2, recorded=3)),
        (2, Window(skipped=0, warm_up=1, recorded=1)),
        (1, Window(skipped=0, warm_up=0, recorded=1)),
    ],
)
def test_the_window_lies_within_the_epoch(steps: int, expected: Window) -> None:
    assert choose_window(steps) == expected


def test_an_epoch_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        choose_window(0)


@pytest.mark.parametrize(("steps", "recorded"), [(6, 4), (1, 1), (34, 20)])
def test_a_run_leaves_trace_and_table(
    steps: int, recorded: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, steps)
    assert recorded_steps(tmp_path) == recorded
    table = (tmp_path / "profile/summary.txt").read_text(encoding="utf-8")
    assert table.startswith(f"{recorded} training steps on ")
    assert "aten::addmm" in table
    assert f"Profile of {recorded} steps" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["summary.txt", "trace.json"]


def test_the_first_steps_are_left_out(tmp_path: Path) -> None:
    fit(tmp_path, steps=34)
    events = json.loads((tmp_path / "profile/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{step}" for step in range(12, 32)}


def test_later_epochs_are_not_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, steps=3, epochs=3)
    assert capsys.readouterr().err.count("Profile of") == 1


def test_a_failing_run_keeps_its_error_and_what_was_recorded(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="stop here"):
        fit(tmp_path, steps=8, fails_at=5)
    assert recorded_steps(tmp_path) >= 3


def test_a_run_that_fails_at_once_leaves_no_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArithmeticError):
        fit(tmp_path, steps=8, fails_at=0)
    assert not (tmp_path / "profile").exists()
    assert "before a step was recorded" in capsys.readouterr().err
