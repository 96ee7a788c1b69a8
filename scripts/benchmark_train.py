"""The time of training steps: forward, loss, backward, optimiser, as the Lightning module takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from statistics import mean, median
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet.inference.sliding_window import WindowRule
from nnunet.options import OptimiserOptions
from nnunet.training.module import ModuleSettings, MultiTaskModule, guide_of
from nnunet.training.optimisers import build_optimiser, parameter_groups, set_learning_rate
from scripts import benchmark_record as records
from scripts.assemble import build_loss
from scripts.benchmark_device import DeviceClock, forget_peak_memory, largest_memory, memory_now
from scripts.benchmark_loader import pooled_usage, processor_of
from scripts.benchmark_network import (
    NetworkWork,
    arithmetic,
    batches_of,
    forward_of,
    network_work,
    settings_of,
)
from scripts.benchmark_result import NetworkMemory, NvidiaTraining, TrainRecord
from scripts.process_team import ALONE, Team
from utils.contracts import Batch, ModelOutput
from utils.timing import summarise
from utils.usage import Usage, usage_now

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions


@final
@dataclass(eq=False)
class TrainingStep:
    """One optimisation step, the same numbers as MultiTaskModule's under Lightning; nothing is read back."""

    work: NetworkWork
    module: MultiTaskModule
    forward: Callable[..., ModelOutput]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clip: float
    done: int = 0

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of the batch, on the device."""
        module = self.module
        progress = module.clock.progress(self.done)
        set_learning_rate(self.optimiser, module.schedule.factor(progress, self.done))
        with self.work.autocast():
            output = self.forward(batch.image, guide_of(module.network, batch))
            loss = module.loss(output, batch).total
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        # Both do nothing where no loss is scaled.
        self.scaler.unscale_(self.optimiser)
        module.configure_gradient_clipping(self.optimiser, self.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if module.averaged is not None:
            module.averaged.update_parameters(module.network)
        self.done += 1
        return loss.detach()


@final
class Called(nn.Module):
    """A network that is called through a function, such as its compiled form, and what learns beside it."""

    def __init__(self, module: MultiTaskModule, forward: Callable[..., ModelOutput]) -> None:
        super().__init__()
        self.network = module.network
        self.loss = module.loss
        self._function = forward

    def forward(self, image: Tensor, guide: Tensor | None) -> ModelOutput:
        """The function's answer."""
        return self._function(image, guide)


def training_step(work: NetworkWork, options: BenchmarkOptions, team: Team = ALONE) -> TrainingStep:
    """The step of this network with the options' loss and optimiser; a team averages its gradients."""
    plan = work.plan
    # Without cases nobody knows how frequent the classes are.
    weighs_classes = options.loss.class_balance and bool(work.fold.training)
    loss = replace(options.loss, class_balance=weighs_classes)
    module = MultiTaskModule(
        work.network,
        build_loss(loss, work.fold, drawn_evenly=options.loader.balance_classes),
        plan,
        work.architecture,
        ModuleSettings(
            optimiser=options.optimiser,
            window=WindowRule(patch=plan.patch),
            total_steps=options.warmup + options.repeats * options.train_batches,
        ),
    ).to(work.device)
    module.train()
    return step_of(work, module, options.optimiser, _forward(module, options, team))


def step_of(
    work: NetworkWork,
    module: MultiTaskModule,
    optimiser: OptimiserOptions,
    forward: Callable[..., ModelOutput],
) -> TrainingStep:
    """The step of a module on its device, with an optimiser and a loss scale as under Lightning."""
    is_scaled = work.half == torch.float16
    return TrainingStep(
        work=work,
        module=module,
        forward=forward,
        # As in MultiTaskModule.configure_optimizers.
        optimiser=build_optimiser(
            parameter_groups(module.network, module.loss), optimiser, fused=not is_scaled
        ),
        scaler=torch.amp.GradScaler(work.device, enabled=is_scaled),
        clip=optimiser.gradient_clip_val,
    )


def _forward(module: MultiTaskModule, options: BenchmarkOptions, team: Team) -> Callable[..., ModelOutput]:
    forward = forward_of(module.network, is_compiled=options.compile)
    if team.size == 1:
        return forward
    # As the trainer does. torch 2.13 has renamed the argument, and the old name is deprecated there.
    known, name = signature(DistributedDataParallel).parameters, "forward_sync_buffers"
    unsynced: dict[str, Any] = {name if name in known else "broadcast_buffers": False}
    device_ids = [torch.cuda.current_device()] if module.device.type == "cuda" else None
    return DistributedDataParallel(Called(module, forward), device_ids=device_ids, **unsynced)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The timed steps of one repeat, in seconds of the device's clock."""

    wall_s: float
    laps_s: tuple[float, ...]  # from the end of one step to the end of the next
    waits_s: tuple[float, ...]  # of each lap, until its batch was there


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The clock's readings of a whole run."""

    first_step_s: float
    stretches: tuple[Stretch, ...]
    used: tuple[Usage, ...]  # in each stretch
    memory: NetworkMemory
    last_loss: float


def measure(options: BenchmarkOptions, team: Team = ALONE) -> TrainRecord:
    """Warm up, time the steps, then count operations and the device's peak."""
    work = network_work(options)
    step = training_step(work, options, team)
    with batches_of(work, options.seed + team.rank) as batches:
        timed = _timed(step, batches, options, team)
    return _record(work, options, team.gather(timed), team)


def _timed(step: TrainingStep, batches: Iterator[Batch], options: BenchmarkOptions, team: Team) -> Timed:
    clock = DeviceClock(step.work.device)
    started = time.perf_counter()
    loss = step(next(batches))
    clock.wait()
    first_step_s = time.perf_counter() - started
    for _ in range(options.warmup - 1):
        loss = step(next(batches))
    forget_peak_memory(clock.device)
    stretches, used = [], []
    for number in range(options.repeats):
        clock.wait()
        team.wait()
        before = usage_now()
        ends, ready = [clock.mark()], []
        for _ in range(options.train_batches):
            batch = next(batches)
            ready.append(clock.mark())
            loss = step(batch)
            ends.append(clock.mark())
        clock.wait()
        used.append(usage_now().since(before))
        stretches.append(stretch_of(clock.seconds([ends[0], *ready, *ends[1:]]), used[-1].wall_s))
        rate = options.train_batches * step.work.batch_size * team.size / used[-1].wall_s
        team.say(f"Repeat {number + 1} of {options.repeats}: {rate:.2f} patches/s")
    return Timed(
        first_step_s=first_step_s,
        stretches=tuple(stretches),
        used=tuple(used),
        memory=memory_now(clock.device),
        last_loss=float(loss),
    )


def slowest(found: Sequence[Timed]) -> tuple[Stretch, ...]:
    """Of each repeat the stretch of the process that took longest."""
    return tuple(
        max(repeat, key=lambda stretch: stretch.wall_s)
        for repeat in zip(*(timed.stretches for timed in found), strict=True)
    )


def stretch_of(seconds: Sequence[float], wall_s: float) -> Stretch:
    """The laps of the marks (start, each batch ready, each step ended)."""
    steps = len(seconds) // 2
    ready, ends = seconds[1 : steps + 1], [seconds[0], *seconds[steps + 1 :]]
    return Stretch(
        wall_s=wall_s,
        laps_s=tuple(end - before for before, end in zip(ends, ends[1:], strict=False)),
        waits_s=tuple(at - before for before, at in zip(ends, ready, strict=False)),
    )


def waiting_share(stretches: Sequence[Stretch]) -> float:
    """The part of the time in which the device had no batch to work on."""
    waited = sum(sum(stretch.waits_s) for stretch in stretches)
    return waited / sum(sum(stretch.laps_s) for stretch in stretches)


def nvidia_training(stretches: Sequence[Stretch], per_step: int) -> NvidiaTraining:
    """NVIDIA's definition: differences of consecutive ends of steps; a stretch of one step has its own.

    `per_step` are the patches of all processes in one step.
    """
    laps = summarise([lap for s in stretches for lap in (s.laps_s[1:] or s.laps_s)])
    return NvidiaTraining(
        throughput_train=per_step / laps.mean_s,
        latency_train_mean=laps.mean_s * records.MS_PER_S,
        latency_train_90=laps.p90_s * records.MS_PER_S,
        latency_train_95=laps.p95_s * records.MS_PER_S,
        latency_train_99=laps.p99_s * records.MS_PER_S,
    )


def _record(work: NetworkWork, options: BenchmarkOptions, found: Sequence[Timed], team: Team) -> TrainRecord:
    stretches, per_step = slowest(found), work.batch_size * team.size
    rates = tuple(len(s.laps_s) * per_step / s.wall_s for s in stretches)
    times = records.batch_times([lap for s in stretches for lap in s.laps_s])
    everyone = [stretch for timed in found for stretch in timed.stretches]
    used = [pooled_usage(repeat) for repeat in zip(*(timed.used for timed in found), strict=True)]
    gpu = torch.cuda.get_device_name() if work.device == "cuda" else None
    return TrainRecord(
        schema=records.SCHEMA,
        mode=options.mode,
        machine=records.machine_record(gpu),
        options=records.portable_options(options),
        settings=settings_of(work, options, team),
        first_step_s=max(timed.first_step_s for timed in found),
        patches_per_s=records.Spread(min=min(rates), median=median(rates), max=max(rates), repeats=rates),
        ms_per_step=times,
        waiting_share=None if work.loader is None else waiting_share(everyone),
        arithmetic=arithmetic(work, times.mean, is_training=True),
        memory_mb=largest_memory([timed.memory for timed in found]),
        last_loss=mean(timed.last_loss for timed in found),
        nvidia=nvidia_training(found[0].stretches, per_step),
        processor=processor_of(used, per_step * options.train_batches),
    )
