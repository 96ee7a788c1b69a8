"""Benchmarks of networks: the step that is timed, the operations that are counted, the clock's arithmetic."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet.inference.sliding_window import WindowRule
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.module import ModuleSettings, MultiTaskModule
from scripts import benchmark_network as networks
from scripts import benchmark_record as records
from scripts import benchmark_result as results
from scripts import benchmark_train as training
from scripts.benchmark_device import DeviceClock, largest_memory, matrix_peaks
from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_predict import Passes, Volumes, nvidia_prediction, synthetic_shape, volume_speed
from scripts.benchmark_refusals import refuse_impossible
from scripts.benchmark_report import metrics_of
from scripts.process_team import Team
from utils.contracts import Batch, Plan
from utils.errors import DatasetError, EnvironmentFault, UserError
from utils.options import parse
from utils.storage import to_plain

SMALL = ("--mode", "train", "--input", "synthetic", "--device", "cpu", "--shape", "2", "8", "16", "16")
SMALL += ("--filters", "4", "--batch_size", "2", "--warmup", "1", "--train_batches", "3", "--repeats", "1")


def options_of(*words: str) -> BenchmarkOptions:
    return parse(BenchmarkOptions, words, program="benchmark.py", description="")


# --- the plan and the operations ---------------------------------------------------------------------------


def test_nvidias_task_01_has_nvidias_network() -> None:
    plan = networks.made_plan(options_of("--shape", "4", "128", "128", "128", "--preset", "nvidia"))
    assert [stage.stride for stage in plan.stages] == [(1, 1, 1)] + 5 * [(2, 2, 2)]
    assert [stage.channels for stage in plan.stages] == [32, 64, 128, 256, 320, 320]
    plain = Architecture(conv_bias=False, decoder_kernels="below", branch="none")
    forward = networks.operations_of(replace(plan, num_labels=4), plain, 1, is_training=False)
    assert forward / 1e12 == pytest.approx(0.97, abs=0.005)  # derived by hand from NVIDIA's rule


def test_spacing_decides_which_axes_are_pooled() -> None:
    words = ("--shape", "1", "16", "64", "64", "--spacing", "5", "1", "1")
    assert networks.made_plan(options_of(*words)).stages[1].stride == (1, 2, 2)


def multiplications(plan: Plan, architecture: Architecture, batch_size: int) -> tuple[int, int]:
    """Of a forward pass by the text-book formula, layer by layer; and those of the first convolution."""
    network, counted = MultiTaskUNet(plan, architecture), []

    def count(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            counted.append(output.numel() * layer.in_features)
            return
        is_transposed = isinstance(layer, nn.ConvTranspose3d)
        places = inputs[0][0, 0].numel() if is_transposed else output[0, 0].numel()
        counted.append(batch_size * places * layer.weight.numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(batch_size, plan.num_channels, *plan.patch))
    return sum(counted), counted[0]


def test_operations_are_those_of_the_text_book(make_plan) -> None:
    plan, architecture = make_plan(num_channels=2), Architecture(num_outputs=2)
    total, first = multiplications(plan, architecture, 3)
    # Backward: the gradient of each weight and of each input, but not of the image.
    expected = 2 * (3 * total - first)
    assert networks.operations_of(plan, architecture, 3, is_training=True) == expected


def test_a_prediction_costs_less_than_a_third_of_a_step(make_plan) -> None:
    plan, architecture = make_plan(), Architecture(num_outputs=2)
    passes, steps = (
        networks.operations_of(plan, architecture, 1, is_training=flag) for flag in (False, True)
    )
    assert 0 < 3 * passes < steps + passes


# --- the timed step ----------------------------------------------------------------------------------------


def lightning_weights(step: training.TrainingStep, batches: list[Batch], options: BenchmarkOptions) -> Any:
    """The weights after the same batches under Lightning, and the averaged ones."""
    torch.manual_seed(options.seed)
    work = step.work
    module = MultiTaskModule(
        MultiTaskUNet(work.plan, work.architecture),
        step.module.loss,
        work.plan,
        work.architecture,
        ModuleSettings(optimiser=options.optimiser, window=WindowRule(patch=work.plan.patch), total_steps=4),
    )

    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=options.optimiser.gradient_clip_val,
        precision="bf16-mixed" if options.amp else "32-true",
    )
    trainer.fit(module, Loader())
    return module.state_dict()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.filterwarnings(
    "ignore:.*in eval mode at the start of training.*", "ignore:.*no `val_dataloader`.*"
)
@pytest.mark.parametrize("flags", [(), ("--amp",), ("--optimizer", "sgd", "--gradient_clip_val", "0.1")])
def test_the_timed_step_moves_the_weights_as_training_does(flags: tuple[str, ...]) -> None:
    # Without chance, whose numbers would have to fall alike: no dropout, the target always guides the branch.
    branch = "roi_pooled:dropout=0,target_share=1"
    options = options_of(*SMALL, "--ema", "0.5", "--classes", "2", "--branch", branch, *flags)
    work = networks.network_work(options)
    if options.amp and work.half is None:
        pytest.skip("this CPU has no bfloat16 arithmetic")
    step = training.training_step(work, options)
    batches = [networks.synthetic_batch(work, seed) for seed in range(3)]
    expected = lightning_weights(step, batches, options)
    for batch in batches:
        step(batch)
    for name, value in step.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_channels_last_arranges_weights_and_voxels() -> None:
    work = networks.network_work(options_of(*SMALL, "--layout", "NDHWC"))
    image = networks.synthetic_batch(work, 1).image
    assert image.shape == (2, 2, 8, 16, 16)
    assert image.is_contiguous(memory_format=torch.channels_last_3d)
    kernels = [weight for weight in work.network.parameters() if weight.ndim == 5]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def failing(network: nn.Module) -> Any:  # noqa: ARG001
        def forward(image: torch.Tensor) -> Any:  # noqa: ARG001
            raise TorchDynamoException("no compiler here")

        return forward

    monkeypatch.setattr(torch, "compile", failing)
    forward = networks.forward_of(nn.Identity(), is_compiled=True)
    with pytest.raises(EnvironmentFault, match="no compiler here"):
        forward(torch.zeros(1))


def test_a_team_averages_its_gradients_as_training_does() -> None:
    options = options_of(*SMALL, "--classes", "2", "--task_balance")
    work = networks.network_work(options)
    batch = networks.synthetic_batch(work, 1)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        step = training.training_step(work, options, Team(rank=0, size=2))
        assert isinstance(step.forward, DistributedDataParallel)
        learning = [weight for group in step.optimiser.param_groups for weight in group["params"]]
        assert {id(weight) for weight in learning} == {id(weight) for weight in step.forward.parameters()}
        assert torch.isfinite(step(batch))
    finally:
        distributed.destroy_process_group()
    assert not isinstance(training.training_step(work, options).forward, DistributedDataParallel)


# --- the clock ---------------------------------------------------------------------------------------------


def test_laps_and_waits_are_told_apart() -> None:
    # Start, three batches ready, three steps ended.
    stretch = training.stretch_of([0.0, 1.0, 4.5, 8.0, 4.0, 8.0, 10.0], wall_s=10.0)
    assert stretch.laps_s == (4.0, 4.0, 2.0)
    assert stretch.waits_s == (1.0, 0.5, 0.0)
    assert training.waiting_share([stretch]) == pytest.approx(0.15)


def test_of_each_repeat_the_slowest_process_counts() -> None:
    def timed(*walls_s: float) -> training.Timed:
        stretches = tuple(training.Stretch(wall_s=wall, laps_s=(wall,), waits_s=(0.0,)) for wall in walls_s)
        memory = results.NetworkMemory(
            peak_resident=walls_s[0], peak_allocated=None, peak_reserved=None, in_use=None
        )
        return training.Timed(first_step_s=1.0, stretches=stretches, used=(), memory=memory, last_loss=0.0)

    found = [timed(1.0, 5.0, 3.0), timed(2.0, 4.0, 6.0)]
    assert [stretch.wall_s for stretch in training.slowest(found)] == [2.0, 5.0, 6.0]
    memory = largest_memory([one.memory for one in found])
    assert (memory.peak_resident, memory.peak_allocated) == (2.0, None)


def test_volumes_of_all_processes_are_counted_by_the_slowest_clock() -> None:
    found = [
        Volumes(mirror=True, voxels=(100, 300), laps_s=(2.0, 2.0, 9.0)),
        Volumes(mirror=True, voxels=(200, 200), laps_s=(4.0, 4.0, 1.0)),
    ]
    speed = volume_speed(found)
    assert (speed.tta, speed.volumes, speed.voxels) == (True, 4, 200)
    assert speed.seconds_per_volume == 2.0  # two volumes in four seconds
    assert speed.voxels_per_s == 800 / 4.0


def test_nvidias_figures_leave_the_first_step_out() -> None:
    stretch = training.Stretch(wall_s=9.0, laps_s=(5.0, 1.0, 3.0), waits_s=(0.0, 0.0, 0.0))
    nvidia = training.nvidia_training([stretch], per_step=4)
    assert nvidia.throughput_train == 4 / 2.0
    assert nvidia.latency_train_mean == 2000.0
    assert nvidia.latency_train_90 == pytest.approx(2800.0)
    passes = nvidia_prediction([Passes(wall_s=9.0, laps_s=(5.0, 1.0, 3.0))], per_pass=4)
    assert (passes.throughput_predict, passes.latency_predict_mean) == (2.0, 2000.0)


def test_the_clock_of_a_cpu_counts_from_its_first_mark() -> None:
    clock = DeviceClock("cpu")
    first, second = clock.seconds([clock.mark(), clock.mark()])
    assert first == 0.0 <= second


def test_peaks_leave_the_precision_of_products_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    peaks = matrix_peaks("cpu")
    assert torch.get_float32_matmul_precision() == before
    assert peaks[0].kind == "fp32"
    assert all(peak.tflops > 0 for peak in peaks)


def test_a_slices_volume_is_deeper_than_its_patch() -> None:
    assert synthetic_shape((1, 32, 48)) == (16, 32, 48)
    assert synthetic_shape((8, 32, 48)) == (16, 64, 96)


# --- what cannot be measured -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "loader", "--input", "synthetic"), "loader does not use --input"),
        (("--mode", "loader", "--optimizer", "sgd"), "loader does not use --optimizer"),
        (("--mode", "preprocess", "--amp", "--gpus", "2"), "preprocess does not use --gpus, --amp"),
        (("--mode", "train", "--operators"), "train does not use --operators"),
        (("--mode", "train", "--labels", "5"), "train without --shape does not use --labels"),
        ((*SMALL, "--steps_per_epoch", "9"), "train does not use --steps_per_epoch"),
        (("--mode", "predict", "--aug", "none"), "predict does not use --augment"),
        (("--mode", "loader", "--operators", "--gpus", "2"), "the steps of one process"),
        (("--mode", "loader", "--operators", "--layout", "NDHWC"), "that delivers NCDHW"),
        (("--mode", "train", "--shape", "1", "8", "8", "8"), "--shape makes a plan for synthetic input"),
        ((*SMALL, "--patch", "8", "8", "8"), "--shape, or --plan, --patch and --fold"),
        ((*SMALL, "--dim", "2"), "does not fit --dim 2"),
        ((*SMALL, "--classes", "1"), "either 0 or at least 2 --classes"),
        ((*SMALL, "--volume", "8", "8", "8"), "train does not use --volume"),
        (("--mode", "predict", "--volume", "8", "8", "8"), "--volume is the synthetic volume"),
        (("--mode", "predict", "--input", "synthetic", "--volumes", "2"), "--volumes counts cases"),
        (("--mode", "predict", "--overlap", "1"), "--overlap is from 0 to below 1"),
        ((*SMALL, "--test_batches", "0"), "--test_batches should be at least 1"),
        (("--mode", "preprocess", "--n_jobs", "0"), "n_jobs is 0"),
    ],
)
def test_impossible_combinations_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        refuse_impossible(options_of(*words))


def test_a_patch_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of"):
        networks.made_plan(options_of("--shape", "1", "30", "32", "32"))


# --- the records -------------------------------------------------------------------------------------------

TIMES = records.BatchTimes(mean=2000.0, p50=2000.0, p90=2800.0, p95=2900.0, p99=2990.0)
TRAINED = results.TrainRecord(
    schema=records.SCHEMA,
    mode="train",
    machine=records.machine_record(None),
    options={"batch_size": 4},
    settings=results.NetworkSettings(
        dataset="synthetic",
        configuration="3d_fullres",
        input="synthetic",
        augmentations=(),
        channels=1,
        labels=3,
        classes=0,
        patch=(8, 8, 8),
        batch_size=4,
        strides=((1, 1, 1), (2, 2, 2)),
        filters=(4, 4),
        outputs=1,
        parameters=1000,
        optimizer="adam",
        precision="32-true",
        arithmetic="fp32",
        layout="NCDHW",
        compiled=False,
        device="cpu",
    ),
    first_step_s=1.0,
    patches_per_s=records.Spread(min=1.0, median=2.0, max=3.0, repeats=(2.0, 1.0, 3.0)),
    ms_per_step=TIMES,
    waiting_share=None,
    arithmetic=results.Arithmetic(
        operations=4 * 10**12,
        tflops=2.0,
        peaks=(results.MatrixPeak(kind="fp32", size=1024, tflops=4.0),),
        share_of_peak=0.5,
    ),
    memory_mb=results.NetworkMemory(peak_resident=1.0, peak_allocated=None, peak_reserved=None, in_use=None),
    last_loss=0.5,
    nvidia=results.NvidiaTraining(
        throughput_train=2.0,
        latency_train_mean=2000.0,
        latency_train_90=2800.0,
        latency_train_95=2900.0,
        latency_train_99=2980.0,
    ),
)


def as_json(record: results.Result) -> dict:
    return json.loads(json.dumps(to_plain(record)))


def test_a_training_record_survives_json() -> None:
    assert results.check_result(as_json(TRAINED), source="made here") == TRAINED


@pytest.mark.parametrize("data", [{"schema": 2, "mode": "train"}, {"schema": 1, "mode": "sleep"}, [], None])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(DatasetError, match="made here should be a benchmark result of schema 1"):
        results.check_result(data, source="made here")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"waiting_share": 0.5}, "waiting_share and input do not agree"),
        ({"patches_per_s": replace(TRAINED.patches_per_s, min=2.5)}, "patches_per_s is not ordered"),
        ({"ms_per_step": replace(TIMES, p95=2995.0)}, "percentiles are not ordered"),
        ({"arithmetic": replace(TRAINED.arithmetic, tflops=4.0)}, "tflops is not the operations over"),
        ({"arithmetic": replace(TRAINED.arithmetic, peaks=())}, "has no measured peak"),
    ],
)
def test_a_training_record_that_cannot_be_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        results.check_result(as_json(replace(TRAINED, **changed)), source="made here")


def test_the_log_has_nvidias_names_and_units() -> None:
    units = {metric.name: metric.unit for metric in metrics_of(TRAINED)}
    assert units["throughput_train"] == "images/s"
    assert {units[f"latency_train_{tail}"] for tail in ("mean", "90", "95", "99")} == {"ms"}
    assert units["train/patches_per_s"] == "patches/s"


def test_made_up_targets_are_coded_as_the_plan_says() -> None:
    work = networks.network_work(options_of(*SMALL, "--labels", "3"))
    plan = replace(work.plan, regions=((1, 2), (2,)), ignore_label=3)
    (fine, *_) = networks.synthetic_batch(replace(work, fold=replace(work.fold, plan=plan)), 0).label
    assert (fine.shape[1], fine.dtype, int(fine.max())) == (3, torch.uint8, 1)
    ignoring = replace(work.plan, ignore_label=3)
    (fine, *_) = networks.synthetic_batch(replace(work, fold=replace(work.fold, plan=ignoring)), 0).label
    assert (fine.shape[1], fine.dtype, int(fine.max())) == (1, torch.int16, 3)
