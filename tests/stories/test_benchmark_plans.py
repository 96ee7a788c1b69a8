"""A benchmark measures the plan that it is told, on the volumes of that plan."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from data_preprocessing import workers
from scripts.benchmark import run
from scripts.benchmark_loader import cases_of
from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_record import LoaderRecord
from scripts.benchmark_refusals import refuse_impossible
from scripts.run_benchmark import benchmark_options
from scripts.run_recipes import read_command
from tests.stories.made_dataset import prepare, write_dataset
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.storage import write_json

if TYPE_CHECKING:
    from _pytest.monkeypatch import MonkeyPatch

pytestmark = pytest.mark.story


def options_of(*words: str) -> BenchmarkOptions:
    return parse(BenchmarkOptions, words, program="benchmark.py", description="")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: "MonkeyPatch") -> Path:
    # The intensities of a made dataset need no hundred million draws.
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 3000 // num_cases)
    return write_dataset(tmp_path)


@pytest.mark.flag("benchmark:plan")
@pytest.mark.parametrize("flag", ["--plan", "--plan_name"])
def test_the_named_plan_is_measured(data: Path, flag: str) -> None:
    folder = prepare(data)
    fields = {"inherits_from": "default", "patch": [8, 16, 8], "batch_size": 3}
    write_json(folder / "plans" / "mine.json", fields)
    words = f"--data {folder.parent} --task 7 --mode loader --device cpu --aug none --num_workers 1"
    timed = "--warmup 1 --train_batches 1 --repeats 1"
    record = run(options_of(*words.split(), *timed.split(), flag, "mine"))
    assert isinstance(record, LoaderRecord)
    assert (record.settings.patch, record.settings.batch_size) == ((8, 16, 8), 3)
    assert record.options["plan"] == "mine"


@pytest.mark.flag("benchmark:plan")
@pytest.mark.parametrize("fold", [(), ("--fold", "0")])
def test_volumes_of_its_own_are_read_even_without_the_default_ones(data: Path, fold: tuple[str, ...]) -> None:
    own = prepare(data, "--plan_name", "fine", "--overwrite_target_spacing", "0.5", "1", "1")
    (own / "splits_final.json").write_text('[{"train": ["case_0", "case_1"], "val": ["case_2"]}]')
    found = cases_of(options_of("--data", str(own.parent), "--task", "7", "--plan", "fine", *fold))
    assert found.folder == own
    assert sorted(found.plan.spacing_mm) == [0.5, 1.0, 1.0]
    assert len(found.training) == (2 if fold else 3)
    with pytest.raises(DatasetError, match="no preprocessed folder 007_3d. It has the plans fine"):
        cases_of(options_of("--data", str(own.parent), "--task", "007"))


@pytest.mark.flag("plan", "benchmark")
def test_main_measures_the_plan_that_it_would_train() -> None:
    words = ["--benchmark", "--data", "D", "--plan", "mine"]
    assert benchmark_options(read_command(words, program="main.py", description="").options).plan == "mine"


@pytest.mark.flag("benchmark:plan")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "train", "--input", "synthetic", "--shape", "1", "8", "8", "8"), "--shape, or --plan"),
        (("--mode", "preprocess"), "--mode preprocess does not use --plan"),
    ],
)
def test_a_plan_that_is_made_here_has_no_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        refuse_impossible(options_of(*words, "--plan", "mine"))
