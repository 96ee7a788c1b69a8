"""The network of a benchmark, its input, and the operations of one batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from data_preprocessing.planners import PlannerOptions
from data_preprocessing.planning import Grid, fit_patch
from data_preprocessing.topology import total_stride
from nnunet.layout import arrange
from nnunet.network import Architecture, MultiTaskUNet, output_shapes
from nnunet.precision import half_type
from nnunet.training.trainer import precision_of
from scripts.benchmark_device import MS_PER_S, arithmetic_of, matrix_peaks
from scripts.benchmark_loader import LoaderWork, cases_of, plan_of_work
from scripts.benchmark_options import SYNTHETIC
from scripts.benchmark_processes import machine_of
from scripts.benchmark_result import Arithmetic, NetworkSettings
from scripts.fold_data import FoldCases
from scripts.process_team import Team
from scripts.trained_plan import architecture_of, trained_plan
from utils.contracts import Batch, IntensityStats, ModelOutput, Plan, Shape
from utils.errors import EnvironmentFault, UserError

if TYPE_CHECKING:
    from scripts.benchmark_options import BenchmarkOptions

MANY_VOXELS = 1e12  # a data set large enough not to limit the batch
NO_STATS = IntensityStats(mean=0.0, std=1.0, median=0.0, min=0.0, max=0.0, low=0.0, high=0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkWork:
    """A network on its device, and how it computes; `loader` is None with synthetic input."""

    fold: FoldCases  # a plan that was made has no cases
    architecture: Architecture
    network: MultiTaskUNet
    batch_size: int
    device: str
    half: torch.dtype | None  # of autocast; None: float32
    channels_last: bool
    loader: LoaderWork | None

    @property
    def plan(self) -> Plan:
        """The plan that is trained."""
        return self.fold.plan

    def autocast(self) -> torch.autocast:
        """As Lightning's mixed precision does it, without the cache of casted weights."""
        return torch.autocast(
            self.device, dtype=self.half, enabled=self.half is not None, cache_enabled=False
        )

    def arranged(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) in the order of axes that the loader would deliver."""
        if not self.channels_last:
            return image
        return image.contiguous(memory_format=torch.channels_last_3d)


def network_work(options: BenchmarkOptions) -> NetworkWork:
    """The plan, and the network that training would build for it, on the device."""
    fold = _cases(options)
    plan = fold.plan
    _refuse_untrainable(plan)
    device = machine_of(options).device
    torch.manual_seed(options.seed)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # as the trainer does
    architecture = architecture_of(options.network, plan)
    network = arrange(MultiTaskUNet(plan, architecture).to(device), options.network.layout)
    is_real = options.input == "real"
    batch_size = options.loader.batch_size
    return NetworkWork(
        fold=fold,
        architecture=architecture,
        network=network,
        batch_size=plan.batch_size if batch_size is None else batch_size,
        device=device,
        half=half_type(device) if precision_of(device, amp=options.amp) != "32-true" else None,
        channels_last=options.network.layout == "NDHWC",
        loader=plan_of_work(options) if is_real else None,
    )


def _cases(options: BenchmarkOptions) -> FoldCases:
    if options.shape is not None:
        plan = trained_plan(made_plan(options), options.network)
        return FoldCases(folder=SYNTHETIC, plan=plan, training=(), validation=(), folds=())
    fold = cases_of(options)
    patch, divisor = fold.plan.patch, total_stride(fold.plan.stages)
    if any(edge % step for edge, step in zip(patch, divisor, strict=True)):
        raise UserError(f"--patch {patch} has to be a multiple of {divisor}, the plan's total stride.")
    return fold


def made_plan(options: BenchmarkOptions) -> Plan:
    """A plan for the patch of --shape by the rules of planning; what only cases can tell is left neutral."""
    assert options.shape is not None
    channels, depth, height, width = options.shape
    patch = (depth, height, width)
    grid = Grid(
        spacing_mm=options.spacing,
        median_shape=(float(depth), float(height), float(width)),
        dataset_voxels=MANY_VOXELS,
        num_labels=options.labels,
    )
    fit = fit_patch(grid, PlannerOptions(preset=options.preset, patch_size=patch))
    return Plan(
        dataset="synthetic",
        configuration="2d" if depth == 1 else "3d_fullres",
        axis_order=(0, 1, 2),
        median_shape=patch,
        spacing_mm=options.spacing,
        patch=patch,
        batch_size=fit.batch_size,
        stages=fit.topology.stages,
        normalisers=("identity",) * channels,
        uses_mask=(False,) * channels,
        intensity=(NO_STATS,) * channels,
        channel_names=tuple(f"channel {place}" for place in range(channels)),
        label_names=("background", *(f"label {place}" for place in range(1, options.labels))),
        class_names=tuple(f"class {place}" for place in range(options.classes)),
        num_channels=channels,
        num_labels=options.labels,
        num_classes=options.classes,
        preset=options.preset,
    )


def _refuse_untrainable(plan: Plan) -> None:
    if plan.prior_labels:
        raise UserError(
            "The plan is the second stage of a cascade, which no benchmark measures. Measure another plan of "
            "the dataset, or --input synthetic with --shape."
        )


def synthetic_batch(work: NetworkWork, seed: int) -> Batch:
    """Random voxels, labels and classes on the device, with the shapes that the loader would deliver."""
    plan, size = work.plan, work.batch_size
    generator = torch.Generator(work.device).manual_seed(seed)

    def whole_numbers(most: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.randint(most, tuple(shape), generator=generator, device=work.device).to(dtype)

    shapes = output_shapes(plan, work.architecture.num_outputs)
    marks_ignored = plan.ignore_label is not None
    most, channels, kind = plan.num_labels + marks_ignored, 1, torch.int16
    if plan.regions:
        most, channels, kind = 2, len(plan.regions) + marks_ignored, torch.uint8
    channels_in = plan.num_channels + plan.prior_labels
    image = torch.randn(size, channels_in, *plan.patch, generator=generator, device=work.device)
    ones = torch.ones(size, device=work.device)
    return Batch(
        image=work.arranged(image),
        label=tuple(whole_numbers(most, (size, channels, *shape), kind) for shape in shapes),
        class_target=whole_numbers(max(plan.num_classes, 1), (size,), torch.int64),
        case_weights=ones,
        case_ids=tuple(f"synthetic {place}" for place in range(size)),
        num_counted=size,
        mask_weights=ones,
    )


@contextmanager
def batches_of(work: NetworkWork, seed: int) -> Iterator[Iterator[Batch]]:
    """Batches in the order of axes that is measured: the loader's, or one synthetic batch without end."""
    if work.loader is None:
        yield itertools.repeat(synthetic_batch(work, seed))
        return
    loader = work.loader.loader()
    try:
        yield iter(loader)
    finally:
        loader.close()


def forward_of(network: torch.nn.Module, *, is_compiled: bool) -> Callable[..., ModelOutput]:
    """The network, or its compiled form; that one fails at its first call, as EnvironmentFault."""
    if not is_compiled:
        return network
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    compiled: Any = torch.compile(network)

    def forward(*inputs: Tensor | None) -> ModelOutput:
        try:
            return compiled(*inputs)
        except (TorchDynamoException, InductorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EnvironmentFault(f"torch.compile failed ({reason}). Leave --compile away.") from error

    return forward


def operations_of(plan: Plan, architecture: Architecture, batch_size: int, *, is_training: bool) -> int:
    """Floating-point operations of one batch, counted on tensors without voxels: no time, no memory."""
    fake = FakeTensorMode()
    with fake, FlopCounterMode(display=False) as counter:
        network = MultiTaskUNet(plan, architecture).train(is_training)
        image = torch.empty(batch_size, plan.num_channels, *plan.patch)
        with torch.set_grad_enabled(is_training):
            output = network(image)
        if is_training:
            ends = (*output.label_logits, *([] if output.class_logits is None else [output.class_logits]))
            torch.autograd.backward([end.sum() for end in ends])
    return counter.get_total_flops()


def arithmetic(work: NetworkWork, mean_ms: float, *, is_training: bool) -> Arithmetic:
    """The operations of a batch against the time it took and against the device's best."""
    operations = operations_of(work.plan, work.architecture, work.batch_size, is_training=is_training)
    tflops = operations / (mean_ms / MS_PER_S) / 1e12
    peaks = matrix_peaks(work.device)
    kind = arithmetic_of(work.device, work.half)
    peak = next(found.tflops for found in peaks if found.kind == kind)
    return Arithmetic(operations=operations, tflops=tflops, peaks=peaks, share_of_peak=tflops / peak)


def settings_of(work: NetworkWork, options: BenchmarkOptions, team: Team) -> NetworkSettings:
    """What the options came to."""
    plan = work.plan
    strides: tuple[Shape, ...] = tuple(stage.stride for stage in plan.stages)
    return NetworkSettings(
        dataset=plan.dataset,
        configuration=plan.configuration,
        input=options.input,
        augmentations=() if work.loader is None else tuple(map(repr, work.loader.recipe)),
        channels=plan.num_channels,
        labels=plan.num_labels,
        classes=plan.num_classes,
        patch=plan.patch,
        batch_size=work.batch_size,
        strides=strides,
        filters=tuple(stage.channels for stage in plan.stages),
        outputs=work.architecture.num_outputs,
        parameters=sum(weight.numel() for weight in work.network.parameters()),
        optimizer=options.optimiser.optimizer,
        precision=precision_of(work.device, amp=options.amp),
        arithmetic=arithmetic_of(work.device, work.half),
        layout=options.network.layout,
        compiled=options.compile,
        device=work.device,
        norm=options.network.norm,
        processes=team.size,
    )
