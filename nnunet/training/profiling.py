"""A torch profiler over some training steps: a Chrome trace and a table of the costliest operators."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytorch_lightning as lightning
import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from utils.run_log import say

FOLDER, TRACE, SUMMARY = "profile", "trace.json", "summary.txt"
STEPS = 20  # recorded; a trace of more grows beyond what viewers open
SKIPPED = 10  # steps before: compilation, cuDNN's search and the loader's first batches are no steady state
WARM_UP = 2  # steps with the profiler on but not kept: its own start is slow
ROWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which steps of the first epoch are skipped, run with the profiler warming up, and recorded."""

    skipped: int
    warm_up: int
    recorded: int


def choose_window(steps: int) -> Window:
    """The window within an epoch of so many steps; a short epoch skips less, then records less.

    ValueError without a step.
    """
    if steps < 1:
        raise ValueError(f"An epoch should have at least one step, got {steps}.")
    recorded = min(STEPS, max(steps - WARM_UP, 1))
    warm_up = min(WARM_UP, steps - recorded)
    return Window(skipped=min(SKIPPED, steps - recorded - warm_up), warm_up=warm_up, recorded=recorded)


@final
class Profiler(lightning.Callback):
    """Records a window of the first epoch on the main process and writes `<results>/profile`.

    The trace opens in chrome://tracing or ui.perfetto.dev. Recorded steps are slower than others: speeds are
    measured without this callback. A run that ends within the window leaves what was recorded until then.
    """

    def __init__(self, results: Path) -> None:
        self.folder = results / FOLDER
        self._profile: profile | None = None
        self._window: Window | None = None
        self._step_region: record_function | None = None
        self._ends: list[float] = []
        self._done = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Choose the window and start."""
        if self._done or not trainer.is_global_zero:
            return
        self._window = choose_window(int(min(trainer.num_training_batches, SKIPPED + WARM_UP + STEPS)))
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, schedule=_schedule(self._window))
        self._profile.start()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # noqa: ANN001, ARG002
        """Mark where the step begins; what lies between two marks is waiting for data."""
        if self._profile is not None:
            self._step_region = record_function("training_step")
            self._step_region.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ANN001, ARG002
        """Count the step; write after the last of the window."""
        if self._profile is None or self._window is None:
            return
        self._leave_step()
        self._ends.append(time.perf_counter())
        if len(self._ends) == sum((self._window.skipped, self._window.warm_up, self._window.recorded)):
            self._finish()
        else:
            self._profile.step()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """An epoch that was cut short ends the window too."""
        self._finish()

    def on_exception(self, trainer, pl_module, exception) -> None:  # noqa: ANN001, ARG002
        """Keep what was recorded; the error goes on."""
        self._leave_step()
        self._finish()

    def _leave_step(self) -> None:
        if self._step_region is not None:
            self._step_region.__exit__(None, None, None)
            self._step_region = None

    def _finish(self) -> None:
        if self._profile is None or self._window is None:
            return
        finished, self._profile, self._done = self._profile, None, True
        finished.stop()
        first = self._window.skipped + self._window.warm_up
        recorded = len(self._ends) - first
        if recorded < 1:
            say("--profile: the run ended before a step was recorded.")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_trace(finished, self.folder / TRACE)
        (self.folder / SUMMARY).write_text(_summary(finished, self._ends, first), encoding="utf-8")
        say(f"Profile of {recorded} steps: {self.folder / TRACE}, {self.folder / SUMMARY}")


def _schedule(window: Window) -> Callable[[int], ProfilerAction] | None:
    """torch's schedule for the window; None records from the start."""
    if window.warm_up == 0:
        return None
    return schedule(
        skip_first=window.skipped, wait=0, warmup=window.warm_up, active=window.recorded, repeat=1
    )


def _write_trace(finished: profile, path: Path) -> None:
    """Beside the target and renamed: a trace that was cut off opens nowhere."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    finished.export_chrome_trace(str(unfinished))
    os.replace(unfinished, path)  # noqa: PTH105 - as in utils.storage


def _summary(finished: profile, ends: list[float], first: int) -> str:
    """What was recorded, then the operators by the time spent in themselves."""
    has_cuda = torch.cuda.is_available()
    key = "self_device_time_total" if has_cuda else "self_cpu_time_total"
    where = torch.cuda.get_device_name() if has_cuda else "CPU"
    lines = [f"{len(ends) - first} training steps on {where}, torch {torch.__version__}"]
    if len(ends) - first > 1:
        mean_s = (ends[-1] - ends[first]) / (len(ends) - first - 1)
        lines.append(f"{1000 * mean_s:.1f} ms per step while profiled, waiting for data included")
    table = finished.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=60)
    return "\n".join([*lines, f"Operators by {key}:", table, ""])
