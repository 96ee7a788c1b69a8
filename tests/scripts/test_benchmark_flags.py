"""Every option of scripts/benchmark.py that needs no folder changes what is measured."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet.precision import half_type
from scripts import benchmark, benchmark_device, benchmark_predict
from scripts import benchmark_network as networks
from scripts import benchmark_train as training
from scripts.benchmark_options import BenchmarkOptions, with_synthetic_data
from scripts.benchmark_processes import machine_of, started_team
from scripts.benchmark_refusals import refuse_impossible
from scripts.benchmark_result import check_result
from scripts.process_team import ALONE
from utils.errors import EnvironmentFault, UserError
from utils.options import parse
from utils.run_log import read_log
from utils.storage import read_json, to_plain

SHAPE = ("--input", "synthetic", "--device", "cpu", "--shape", "1", "16", "16", "16")
TINY = (*SHAPE, "--filters", "4", "--batch_size", "2")
TRAIN = ("--mode", "train", *TINY)
CLASSES = (*TRAIN, "--classes", "2", "--branch", "simple")
SGD = (*TRAIN, "--optimizer", "sgd")
DEEP = (*TRAIN, "--depth", "3", "--min_fmap", "2")
QUICK = ("--warmup", "1", "--train_batches", "1", "--test_batches", "1", "--repeats", "1")


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's peak is measured on small matrices here: its value is of no interest."""
    monkeypatch.setitem(benchmark_device.PEAK_SIZE, "cpu", 64)


def flag(name: str, *words: str, base: tuple[str, ...] = TRAIN) -> Any:
    return pytest.param(base, (f"--{name}", *words), id=name, marks=pytest.mark.flag(f"benchmark:{name}"))


def options_of(*words: str) -> BenchmarkOptions:
    options = with_synthetic_data(parse(BenchmarkOptions, words, program="benchmark.py", description=""))
    refuse_impossible(options)
    return options


@cache
def losses(*words: str) -> list[float]:
    """Of three steps; a patch in which every lesion voxel is background comes second."""
    options = options_of(*words)
    work = networks.network_work(options)
    step = training.training_step(work, options)
    batch = networks.synthetic_batch(work, options.seed)
    empty = replace(batch, label=tuple(torch.zeros_like(label) for label in batch.label))
    return [float(step(one)) for one in (batch, empty, batch)]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        flag("seed", "2"),
        flag("labels", "4"),
        flag("classes", "2"),
        flag("spacing", "4", "1", "1"),
        flag("preset", "nvidia"),
        flag("shape", "2", "16", "16", "16"),
        flag("batch_size", "1"),
        flag("encoder", "residual"),
        flag("branch", "roi_pooled", base=CLASSES),
        flag("res_block"),
        flag("depth", "1"),
        flag("min_fmap", "8"),
        flag("filters", "4", "6"),
        flag("norm", "batch"),
        flag("negative_slope", "0.5"),
        flag("deep_supervision", base=DEEP),
        flag("deep_supr_num", "2", base=(*DEEP, "--deep_supervision")),
        flag("class_loss_weight", "2", base=CLASSES),
        flag("lesion_free_weight", "1", base=CLASSES),
        flag("class_loss", "focal", base=CLASSES),
        flag("task_balance", base=CLASSES),
        flag("batch_dice", "True"),
        flag("focal"),
        flag("optimizer", "sgd"),
        flag("learning_rate", "0.1"),
        flag("head_learning_rate", "0.1", base=CLASSES),
        flag("momentum", "0", base=SGD),
        flag("weight_decay", "100"),
        flag("scheduler"),
        flag("schedule", "poly"),
        flag("warmup_steps", "50"),
        flag("gradient_clip_val", "0.001", base=SGD),
    ],
)
def test_the_option_changes_the_measured_steps(base: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert losses(*base, *words) != losses(*base)


def test_without_another_option_the_steps_are_the_same() -> None:
    assert losses.__wrapped__(*TRAIN) == losses(*TRAIN)


@pytest.mark.flag("benchmark:more_chn")
def test_more_channels_are_those_of_the_network() -> None:
    work = networks.network_work(options_of("--mode", "predict", *SHAPE, "--more_chn"))
    assert [stage.channels for stage in work.plan.stages] == [64, 96, 128, 192][: len(work.plan.stages)]


@pytest.mark.flag("benchmark:layout")
def test_with_the_channels_last_the_weights_have_them_last() -> None:
    for order, is_last in (("NDHWC", True), ("NCDHW", False)):
        work = networks.network_work(options_of(*TRAIN, "--layout", order))
        kernel = next(
            weight for weight in work.network.parameters() if weight.ndim == 5 and min(weight.shape) > 1
        )
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d) == is_last
        assert networks.synthetic_batch(work, 1).image.shape == (2, 1, 16, 16, 16)


@pytest.mark.flag("benchmark:ema")
def test_a_weight_average_is_kept_as_training_keeps_it() -> None:
    for words, kept in (((), False), (("--ema", "0.5"), True)):
        options = options_of(*TRAIN, *words)
        step = training.training_step(networks.network_work(options), options)
        assert (step.module.averaged is not None) == kept


@pytest.mark.flag("benchmark:class_balance")
def test_classes_weigh_by_the_cases_of_the_folder() -> None:
    cases: Any = tuple(SimpleNamespace(case_id=str(n), class_target=int(n > 2)) for n in range(4))
    weights = []
    for words in ((), ("--no_class_balance",)):
        options = options_of(*CLASSES, *words)
        work = networks.network_work(options)
        work = replace(work, fold=replace(work.fold, training=cases))
        loss = training.training_step(work, options).module.loss
        weights.append(loss.class_loss.get_buffer("class_weights").tolist())
    assert weights[0][1] == pytest.approx(3 * weights[0][0])  # three cases against one
    assert weights[1] == [1.0, 1.0]


@pytest.mark.flag("benchmark:amp")
def test_mixed_precision_is_used_and_reported() -> None:
    if half_type("cpu") is None:
        pytest.skip("this CPU has no bfloat16 arithmetic")
    plain, mixed = (networks.network_work(options_of(*TRAIN, *words)) for words in ((), ("--amp",)))
    assert (plain.half, mixed.half) == (None, torch.bfloat16)
    assert networks.settings_of(mixed, options_of(*TRAIN, "--amp"), ALONE).precision == "bf16-mixed"


@pytest.mark.flag("benchmark:compile")
def test_the_network_is_compiled_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    losses.__wrapped__(*TRAIN)
    assert not compiled
    losses.__wrapped__(*TRAIN, "--compile")
    assert len(compiled) == 1


# --- how long, how much ------------------------------------------------------------------------------------


@pytest.mark.flag("benchmark:warmup", "benchmark:train_batches", "benchmark:repeats")
@pytest.mark.parametrize(("warmup", "batches", "repeats"), [(1, 2, 2), (3, 2, 2), (1, 5, 1)])
def test_steps_are_warmed_up_and_timed_as_often_as_asked(warmup: int, batches: int, repeats: int) -> None:
    counts = {"warmup": warmup, "train_batches": batches, "repeats": repeats}
    words = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    options = options_of(*TRAIN, *words)
    work = networks.network_work(options)
    step = training.training_step(work, options)
    with networks.batches_of(work, 1) as given:
        timed = training._timed(step, given, options, ALONE)
    assert step.done == warmup + batches * repeats
    assert [len(stretch.laps_s) for stretch in timed.stretches] == [batches] * repeats


class CountedForward:
    """A network whose batches are written down."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.batches: list[int] = []

    def __call__(self, image: torch.Tensor) -> Any:
        self.batches.append(image.shape[0])
        return self.network(image)


def forward_batches(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[int]:
    counted: list[CountedForward] = []

    def forward_of(network: torch.nn.Module, *, is_compiled: bool) -> CountedForward:  # noqa: ARG001
        counted.append(CountedForward(network))
        return counted[-1]

    monkeypatch.setattr(benchmark_predict, "forward_of", forward_of)
    benchmark_predict.measure(options_of("--mode", "predict", *TINY, *QUICK, *words))
    return counted[0].batches


PASSES = [2, 2]  # one batch to warm up, one timed
VIEWS = 8  # a volume and its mirror images, which go through the network together


@pytest.mark.flag("benchmark:volume", "benchmark:overlap", "benchmark:val_batch_size")
@pytest.mark.parametrize(
    ("words", "windows", "mirrored"),
    [
        (("--volume", "16", "16", "16"), [1], 1),
        (("--volume", "16", "16", "32", "--overlap", "0"), [2], 2),
        (("--volume", "16", "16", "32", "--overlap", "0.5"), [3], 3),
        (("--volume", "16", "16", "32", "--overlap", "0.5", "--val_batch_size", "2"), [2, 1], 3),
    ],
)
def test_windows_of_a_volume_are_as_many_as_asked(
    words: tuple[str, ...], windows: list[int], mirrored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = forward_batches(monkeypatch, *words)
    plain = PASSES + 2 * windows  # once without the clock, once with it
    assert batches[: len(plain)] == plain
    assert sum(batches[len(plain) :]) == 2 * VIEWS * mirrored


@pytest.mark.flag("benchmark:test_batches")
def test_patches_pass_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--volume", "16", "16", "16")
    one, four = (forward_batches(monkeypatch, *small, "--test_batches", count) for count in ("1", "4"))
    assert four == [2, 2, 2, *one]


# --- where ------------------------------------------------------------------------------------------------


@pytest.mark.flag("benchmark:data", "benchmark:input", "benchmark:dim")
def test_synthetic_is_a_spelling_of_no_folder() -> None:
    found = options_of("--mode", "train", "--data", "synthetic")
    assert (found.input, found.shape) == ("synthetic", (4, 128, 128, 128))
    assert options_of("--mode", "train", "--data", "synthetic", "--dim", "2").shape == (4, 1, 192, 160)
    assert options_of("--mode", "train", "--data", "synthetic", "--shape", "1", "8", "8", "8").shape == (
        1,
        8,
        8,
        8,
    )
    with pytest.raises(UserError, match="loader does not use --input, --shape"):
        options_of("--mode", "loader", "--data", "synthetic")


@pytest.mark.flag("benchmark:device")
def test_a_device_that_is_missing_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentFault, match="0 are visible"):
        machine_of(options_of("--mode", "train", *SHAPE, "--device", "cuda"))
    assert machine_of(options_of("--mode", "train", *SHAPE, "--device", "auto")).device == "cpu"


@pytest.mark.flag("benchmark:affinity")
def test_a_wrong_affinity_is_refused() -> None:
    with (
        pytest.raises(UserError, match="--affinity should be one of"),
        started_team(options_of(*TRAIN, "--affinity", "nearby")),
    ):
        pass


@pytest.mark.flag("benchmark:gpus", "benchmark:nodes")
@pytest.mark.parametrize("words", [("--gpus", "0"), ("--nodes", "0")])
def test_no_process_at_all_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--gpus and --nodes should be at least 1"):
        machine_of(options_of(*TRAIN, *words))


@pytest.mark.flag("benchmark:steps_per_epoch")
def test_a_benchmark_has_no_epochs() -> None:
    with pytest.raises(UserError, match="train does not use --steps_per_epoch"):
        options_of(*TRAIN, "--steps_per_epoch", "5")


@pytest.mark.flag("benchmark:results", "benchmark:logname", "benchmark:mode")
def test_files_are_called_after_mode_and_logname(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "made" / "for_it"
    record = benchmark.run(options_of(*TRAIN, *QUICK, "--results", str(written), "--logname", "mine.json"))
    assert {path.name for path in written.iterdir()} == {"benchmark_train.json", "mine.json"}
    assert check_result(read_json(written / "benchmark_train.json"), source="the file") == record
    assert read_log(written / "mine.json")[-1]["data"]["throughput_train"] > 0
    assert "patches/s" in capsys.readouterr().out  # the table
    benchmark.run(options_of("--mode", "predict", *TINY, *QUICK, "--results", str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"made", "benchmark_predict.json", "perf.json"}


@pytest.mark.flag("benchmark:json")
def test_json_is_the_only_line_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    record = benchmark.run(options_of(*TRAIN, *QUICK, "--json"))
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "patches/s" in said.err
    assert to_plain(record)["mode"] == "train"
