"""The seconds of preprocessing by step, and what a prepared case tells of itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import preprocess_speed
from data_preprocessing import workers
from tests.stories.made_dataset import prepare, write_dataset
from utils.prepared_folder import list_prepared
from utils.storage import read_array

pytestmark = pytest.mark.story


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 1000)
    return write_dataset(tmp_path)


def test_every_step_is_timed_and_nothing_is_left(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(preprocess_speed.tempfile, "tempdir", None)
    words = ["preprocess_speed.py", "--data", str(data), "--task", "7", "--spacing", "2", "1", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--resampling", "torch", "--n_jobs", "1"])
    preprocess_speed.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["cases"], found["spacing_mm"], found["resampling"]) == (3, [2, 1, 1], "torch")
    assert found["whole_s"] == pytest.approx(found["survey_s"] + found["plan_s"] + found["prepare_s"])
    assert found["prepare_s_per_case"] == pytest.approx(found["prepare_s"] / 3)
    assert found["prepare_processor_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_memory_of_children_counts() -> None:
    program = (
        "held = bytearray(200 << 20); held[::4096] = b'x' * (200 << 8); print('up', flush=True); input()"
    )
    before = preprocess_speed.proportional_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = preprocess_speed.proportional_bytes()
        child.communicate(b"\n")
    assert during - before == pytest.approx(200 << 20, rel=0.2)


def test_the_shown_mean_and_deviation_are_those_of_the_stored_volume(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data, "--dtype", "float32", "--verbose")
    shown = capsys.readouterr()
    for case in list_prepared(folder):
        image = read_array(case.image).astype(np.float64)
        assert f"mean {image.mean():.3f}, std {image.std():.3f}" in shown.out + shown.err
