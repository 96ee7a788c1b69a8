"""The memory of a training step: real steps of a network of its own on random voxels, then thrown away."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import final

import psutil
import torch
from pytorch_lightning.utilities.memory import is_oom_error
from pytorch_lightning.utilities.seed import isolate_rng

from data_loading.loader import Shard
from data_loading.residency import volume_bytes
from nnunet.inference.sliding_window import WindowRule
from nnunet.network import MultiTaskUNet
from nnunet.precision import half_type
from nnunet.ranks import by_itself
from nnunet.training.module import ModuleSettings, MultiTaskModule
from scripts.assemble import build_module, trained_architecture, training_entries
from scripts.benchmark_network import NetworkWork, synthetic_batch
from scripts.benchmark_train import step_of
from scripts.fold_data import FoldCases
from scripts.memory_check import free_bytes
from scripts.run_options import RunOptions
from utils.contracts import Batch
from utils.machine import read_memory
from utils.run_log import say
from utils.usage import forget_peak_resident, peak_resident_bytes

# How cuDNN and cuBLAS say it, beside what Lightning knows: torch tries one plan after the other, and tells in
# the end that none could be run.
DISGUISED = (
    "unable to find an engine",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
STEPS = 2  # the optimiser's own memory is there from the second one on


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Bytes of a device before training steps and at their peak; None where the system does not tell."""

    device: str  # what it is called
    total: int | None
    free: int | None  # before the steps
    peak: int | None = None  # what the steps took


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGauge:
    """What torch's allocator takes of a GPU; a context and its libraries come on top."""

    device_id: int

    def start(self) -> StepMemory:
        """The GPU now; its peak is counted from here."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device_id)
        free, total = torch.cuda.mem_get_info(self.device_id)
        return StepMemory(device=torch.cuda.get_device_name(self.device_id), total=total, free=free)

    def peak(self) -> int:
        """The most that was reserved since the start."""
        torch.cuda.synchronize(self.device_id)
        return torch.cuda.max_memory_reserved(self.device_id)


@final
@dataclass(slots=True)
class HostGauge:
    """The growth of this process's resident memory, where the system counts a peak anew."""

    resident: int = field(default=0, init=False)
    is_counted: bool = field(default=False, init=False)

    def start(self) -> StepMemory:
        """The machine now; the growth is counted from here."""
        memory = read_memory()
        known = [size for size in (memory.total_bytes, memory.container_limit_bytes) if size is not None]
        psutil.heap_trim()  # what an earlier step has freed is no room that this one takes for nothing
        self.resident = int(psutil.Process().memory_info().rss)
        self.is_counted = forget_peak_resident()
        return StepMemory(device="this machine", total=min(known, default=None), free=free_bytes())

    def peak(self) -> int | None:
        """The most that the process has grown by since the start."""
        return max(peak_resident_bytes() - self.resident, 0) if self.is_counted else None


def measure_step(options: RunOptions, fold: FoldCases, batch_size: int, shard: Shard) -> StepMemory | None:
    """The memory of training steps as the run takes them; None where they run out of it.

    Network, optimiser and batch are made for it and freed again, and the random numbers of the run stay as
    they are: it learns what it would have learned without.
    """
    is_gpu = shard.device_id is not None
    gauge = HostGauge() if shard.device_id is None else GpuGauge(device_id=shard.device_id)
    with isolate_rng(include_cuda=is_gpu), _as_trained(shard):
        memory = gauge.start()
        has_room = _has_room(options, fold, batch_size, shard)
        memory = replace(memory, peak=gauge.peak())
        gc.collect()  # a module and its parts refer to each other
        if is_gpu:
            torch.cuda.empty_cache()
    return memory if has_room else None


def take_steps(options: RunOptions, fold: FoldCases, batch_size: int, shard: Shard) -> None:
    """Forward, loss, backward and optimiser, with the run's network and precision, but never compiled."""
    device = "cpu" if shard.device_id is None else "cuda"
    plan, architecture = fold.plan, trained_architecture(options, fold.plan)
    settings = ModuleSettings(
        optimiser=options.optimiser, window=WindowRule(patch=plan.patch), total_steps=STEPS
    )
    network = MultiTaskUNet(plan, architecture)
    module = build_module(options, fold, network, architecture, settings).to(device)
    work = NetworkWork(
        fold=fold,
        architecture=architecture,
        network=module.network,
        batch_size=batch_size,
        device=device,
        half=half_type(device) if options.training.amp else None,
        channels_last=shard.channels_last,
        loader=None,
    )
    step = step_of(work, module, options.optimiser, module.network)
    batch = synthetic_batch(work, options.seed)
    beside = _held_beside(options, fold, module, batch, shard) if device == "cuda" else 0
    held = torch.empty(beside, dtype=torch.uint8, device=device)
    for _ in range(STEPS):
        step(batch)
    del held  # until here it took its place


def _has_room(options: RunOptions, fold: FoldCases, batch_size: int, shard: Shard) -> bool:
    """Whether the steps end; nothing of them is left, whichever way they end."""
    try:
        # One rank that runs out of memory in the middle of a step must not leave the others waiting there.
        with by_itself():
            take_steps(options, fold, batch_size, shard)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or is_oom_error(error):
            return False
        if shard.device_id is not None and any(words in str(error) for words in DISGUISED):
            say(f"A batch of {batch_size} seems to want more memory than there is: {error}")
            return False
        raise
    return True


def _held_beside(
    options: RunOptions, fold: FoldCases, module: MultiTaskModule, batch: Batch, shard: Shard
) -> int:
    """Bytes that lie on the GPU beside a step.

    They are the batches that DALI makes ahead there, the volumes that --residency device keeps, and with
    several GPUs a second copy of the gradients.
    """
    tensors = (batch.image, *batch.label)
    ahead = 0 if shard.on_host else shard.prefetch + 1
    held = ahead * sum(tensor.nbytes for tensor in tensors)
    if options.loader.residency == "device":
        held += volume_bytes(training_entries(options, fold))
    if shard.world_size > 1:
        held += sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)
    return held


@contextmanager
def _as_trained(shard: Shard) -> Iterator[None]:
    """The GPU of this process, and cuDNN's search for the fastest kernels, as the trainer has them."""
    if shard.device_id is None:
        yield
        return
    before = torch.backends.cudnn.benchmark
    with torch.cuda.device(shard.device_id):
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
