"""`python scripts/benchmark.py --mode loader` from its arguments to its figures, on a phantom."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cold_cache import measure_windows
from benchmarks.cold_cache import summarise as summarise_reads
from scripts.benchmark import RESULT_FILE, BenchmarkOptions, run
from scripts.benchmark_record import LoaderRecord, check_record
from utils.errors import UserError
from utils.options import parse
from utils.prepared_folder import list_prepared
from utils.storage import read_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--task", "500", "--device", "cpu", "--num_workers", "1", "--warmup", "1")
SHORT += ("--train_batches", "2", "--repeats", "2")


def bench(phantom, *flags: str) -> LoaderRecord:
    words = ["--data", str(phantom.prepared), *SHORT, *flags]
    return run(parse(BenchmarkOptions, words, program="benchmark.py", description=""))


def test_the_command_prints_one_line_of_json_from_any_folder(phantom, tmp_path: Path) -> None:
    words = ["--mode", "loader", "--data", str(phantom.prepared), "--aug", "none", "--json", *SHORT]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words, "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    record = check_record(json.loads(lines[0]), source="standard output")
    assert record == check_record(read_json(tmp_path / RESULT_FILE), source=RESULT_FILE)
    assert "patches/s" in done.stderr
    assert str(tmp_path) not in done.stdout  # folders of one machine say nothing elsewhere


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
