"""`python scripts/benchmark.py` from its arguments to its figures, on a phantom and on synthetic input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cold_cache import measure_windows
from benchmarks.cold_cache import summarise as summarise_reads
from scripts.benchmark import result_file, run
from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_record import LoaderRecord, check_record
from scripts.benchmark_result import PredictRecord, PreprocessRecord, TrainRecord, check_result
from utils.errors import UserError
from utils.options import parse
from utils.prepared_folder import list_prepared
from utils.run_log import read_log
from utils.storage import read_json, to_plain

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--task", "500", "--device", "cpu", "--num_workers", "1", "--warmup", "1")
SHORT += ("--train_batches", "2", "--repeats", "2")


def bench(phantom, *flags: str) -> LoaderRecord:
    words = ["--data", str(phantom.prepared), *SHORT, *flags]
    record = run(parse(BenchmarkOptions, words, program="benchmark.py", description=""))
    assert isinstance(record, LoaderRecord)
    return record


@pytest.mark.flag("benchmark:json", "benchmark:results")
def test_the_command_prints_one_line_of_json_from_any_folder(phantom, tmp_path: Path) -> None:
    words = ["--mode", "loader", "--data", str(phantom.prepared), "--aug", "none", "--json", *SHORT]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words, "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    record = check_record(json.loads(lines[0]), source="standard output")
    name = result_file("loader")
    assert record == check_record(read_json(tmp_path / name), source=name)
    assert "patches/s" in done.stderr
    assert str(tmp_path) not in done.stdout  # folders of one machine say nothing elsewhere


@pytest.mark.flag("benchmark:patch", "benchmark:batch_size", "benchmark:repeats")
def test_without_augmentation_a_patch_cuts_its_own_voxels(phantom) -> None:
    record = bench(phantom, "--aug", "none", "--patch", "4", "8", "16", "--batch_size", "3")
    voxels = 4 * 8 * 16  # all volumes are larger
    image_bytes = {"float16": 2, "float32": 4}[record.settings.image_type]
    assert record.bytes_per_patch.cut == voxels * record.settings.channels * image_bytes + voxels * 2
    assert (record.settings.patch, record.settings.batch_size) == ((4, 8, 16), 3)
    assert len(record.patches_per_s.repeats) == 2


def test_turned_patches_cut_more_than_their_own_voxels(phantom) -> None:
    turned = "rotate_scale:rotation_probability=1,scale_probability=1,low=1.4,high=1.4"
    plain, larger = (bench(phantom, "--patch", "4", "8", "8", "--aug", aug) for aug in ("none", turned))
    assert larger.bytes_per_patch.cut > 1.4 * plain.bytes_per_patch.cut


@pytest.mark.flag("benchmark:operators", "benchmark:augment_in", "benchmark:augment")
@pytest.mark.parametrize("place", ["host", "graph"])
def test_every_step_of_a_patch_has_its_row(phantom, place: str) -> None:
    aug = ("rotate_scale", "noise:probability=1", "mirror:probability=0")
    costs = bench(phantom, "--operators", "--augment_in", place, "--aug", *aug).operators
    assert costs is not None
    finish = ["targets", "hand over"] if place == "host" else ["targets, hand over"]
    assert [row.name for row in costs.rows] == ["draw", "read", "rotate_scale", "noise", "mirror", *finish]
    rows = {row.name: row for row in costs.rows}
    assert {rows[name].place for name in ("rotate_scale", "noise", "mirror")} == {place}
    assert rows["rotate_scale"].probability == pytest.approx(1 - 0.8**2, abs=0.06)
    assert rows["noise"].probability == 1.0
    assert (rows["mirror"].probability, rows["mirror"].mean_ms) == (0.0, 0.0)
    assert rows["rotate_scale"].applied_ms > 0
    host_ms = sum(row.mean_ms for row in costs.rows if row.place == "host")
    assert costs.host_ms == pytest.approx(host_ms)


@pytest.mark.flag("benchmark:fold")
def test_a_fold_reads_its_training_cases_only(phantom) -> None:
    everything, fold = bench(phantom, "--aug", "none"), bench(phantom, "--aug", "none", "--fold", "0")
    assert fold.settings.cases < everything.settings.cases


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--warmup", "0"), "--warmup should be at least 1"),
        (("--patch", "1", "16", "16"), "does not fit the plan"),
    ],
)
def test_what_cannot_be_measured_is_refused(phantom, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(phantom, *flags)


def test_on_a_cold_cache_the_loader_fetches_the_pages_of_the_window_and_no_more(
    phantom, tmp_path: Path
) -> None:
    # A copy: what another test still maps cannot be thrown out of the cache.
    cases = list_prepared(shutil.copytree(phantom.prepared / "500_3d", tmp_path / "500_3d"))
    try:
        costs = measure_windows(cases, (4, 8, 16), windows=2, seed=1)
    except OSError as fault:
        pytest.skip(f"this file system keeps its cache: {fault}")
    ours = [cost for cost in costs if cost.reader == "ours"]
    assert [cost.resident for cost in ours] == [cost.touched for cost in ours]
    summary = summarise_reads(costs)
    assert summary["whole file"]["resident_mb"] >= summary["ours"]["resident_mb"] > 0


# --- training, prediction, preprocessing -------------------------------------------------------------------

MADE = ("--input", "synthetic", "--shape", "2", "8", "16", "16", "--filters", "4", "--batch_size", "2")
QUICK = ("--device", "cpu", "--num_workers", "1", "--warmup", "1", "--train_batches", "2", "--repeats", "2")
QUICK += ("--test_batches", "2")


def result(*flags: str):
    return run(parse(BenchmarkOptions, flags, program="benchmark.py", description=""))


def test_synthetic_training_needs_no_folder_and_writes_record_and_log(tmp_path: Path) -> None:
    words = ["--mode", "train", *MADE, "--classes", "3", *QUICK, "--json", "--results", str(tmp_path)]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    record = check_result(json.loads(done.stdout.splitlines()[-1]), source="standard output")
    assert isinstance(record, TrainRecord)
    assert record == check_result(read_json(tmp_path / result_file("train")), source="the file")
    assert (record.settings.classes, record.waiting_share) == (3, None)
    lines = read_log(tmp_path / BenchmarkOptions().logname)
    units = {line["metric"]: line["metadata"]["unit"] for line in lines if line["type"] == "METADATA"}
    assert (units["throughput_train"], units["latency_train_99"]) == ("images/s", "ms")
    assert lines[-1]["step"] == []
    assert lines[-1]["data"]["throughput_train"] == record.nvidia.throughput_train


@pytest.mark.flag("benchmark:layout")
def test_the_order_of_axes_changes_no_number_beyond_rounding() -> None:
    plain, last = (
        result("--mode", "train", *QUICK, *MADE, "--layout", order) for order in ("NCDHW", "NDHWC")
    )
    assert last.last_loss == pytest.approx(plain.last_loss, rel=1e-4)
    assert (plain.settings.layout, last.settings.layout) == ("NCDHW", "NDHWC")


@pytest.mark.flag("benchmark:dim", "benchmark:task", "benchmark:data")
@pytest.mark.parametrize("dim", ["3", "2"])
def test_training_on_real_patches_tells_the_share_of_waiting(phantom, dim: str) -> None:
    where = ("--data", str(phantom.prepared), "--task", "500", "--dim", dim)
    record = result("--mode", "train", *QUICK, *where, "--aug", "none")
    assert 0 <= record.waiting_share <= 1
    assert record.processor.ms_per_patch > 0
    assert record.settings.patch == ((8, 16, 16) if dim == "3" else (1, 16, 16))
    assert record == check_result(json.loads(json.dumps(to_plain(record))), source="made here")


@pytest.mark.flag("benchmark:volumes", "benchmark:input", "benchmark:mode")
@pytest.mark.parametrize("source", ["real", "synthetic"])
def test_prediction_measures_patches_and_whole_volumes(phantom, source: str) -> None:
    where = ("--data", str(phantom.prepared), "--task", "500", "--input", source)
    record = result(
        "--mode",
        "predict",
        *QUICK,
        *where,
        *(("--volumes", "2", "--overlap", "0") if source == "real" else ()),
    )
    assert isinstance(record, PredictRecord)
    assert record == check_result(json.loads(json.dumps(to_plain(record))), source="made here")
    plain, mirrored = record.whole_volumes
    assert mirrored.seconds_per_volume > plain.seconds_per_volume
    if source == "synthetic":
        assert plain.voxels == 16 * 32 * 32  # twice the patch along each axis
    assert plain.volumes == (2 if source == "real" else 1)
    assert record.settings.augmentations == ()
    assert record.processor is not None
    assert record.processor.ms_per_patch > 0


@pytest.mark.flag("benchmark:n_jobs", "benchmark:mode")
def test_preprocessing_is_measured_case_by_case(phantom) -> None:
    record = result(
        "--mode", "preprocess", "--data", str(phantom.raw.parent), "--task", "500", "--n_jobs", "1"
    )
    assert isinstance(record, PreprocessRecord)
    assert record == check_result(json.loads(json.dumps(to_plain(record))), source="made here")
    assert (record.cases, record.processes) == (12, 1)
    assert record.peak_resident_mb > 50
    assert min(record.raw_mb, record.written_mb) > 0


def test_the_gpu_suite_runs_in_small_on_this_machine(tmp_path: Path) -> None:
    environment = os.environ | {"GPU_SUITE_SMALL": "1", "PYTHON": sys.executable}
    # Other stories run the commands of the other kinds; test_benchmark_suite.py checks their options.
    only = ["--only", "tests", "data", "train_large", "profile"]
    command = ["bash", str(ROOT / "scripts" / "gpu_suite.sh"), "out", *only]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    names = {"gpu_suite.json", "gpu_suite.txt", "gpu_suite.log", "tests.xml", "trace.json.gz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    record = read_json(tmp_path / "out" / "gpu_suite.json")
    log = (tmp_path / "out" / "gpu_suite.log").read_text()
    assert {part["name"]: part["rc"] for part in record["parts"]} == {
        part["name"]: 0 for part in record["parts"]
    }, log
    measured = [part["result"] for part in record["parts"] if part["result"] and "mode" in part["result"]]
    assert [check_result(found, source="a part").mode for found in measured] == ["train"]
    assert len(record["parts"]) == 4
    assert str(tmp_path) not in json.dumps(record)
