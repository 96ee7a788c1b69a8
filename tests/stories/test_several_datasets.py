"""`preprocess.py` with several datasets, and with the folders that nnU-Net's environment variables name."""

import sys
from pathlib import Path

import pytest

from data_preprocessing import workers
from scripts import preprocess
from scripts.run_recipes import read_command
from tests.stories.made_dataset import write_dataset
from utils.errors import UserError
from utils.prepared_folder import list_prepared

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

pytestmark = pytest.mark.story


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 3000 // num_cases)
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dataset007_Made, Dataset009_Other, and between them Dataset008_Broken, whose label is cut off."""
    place = write_dataset(tmp_path)
    for name in ("Dataset008_Broken", "Dataset009_Other"):
        (write_dataset(tmp_path / name) / "Dataset007_Made").rename(place / name)
    label = place / "Dataset008_Broken" / "labelsTr" / "case_1.nii.gz"
    label.write_bytes(label.read_bytes()[:40])
    return place


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["preprocess.py", "--n_jobs", "1", *words])
    preprocess.main()


@pytest.mark.flag("preprocess:task")
def test_one_that_fails_does_not_stop_the_others(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = data.parent / "results"
    words = ["--data", str(data), "--results", str(results), "--task", "7", "8", "55", "Dataset009_Other"]
    with pytest.raises(UserError, match="2 of 4 datasets failed, see above: 8, 55") as caught:
        command(monkeypatch, *words)
    assert caught.value.exit_status == 1
    assert [len(list_prepared(results / name)) for name in ("007_3d", "009_3d")] == [3, 3]
    assert not list((results / "008_3d").glob("*.npy"))
    said = capsys.readouterr().err
    assert "Dataset 8 failed. " in said
    assert "No dataset for task '55'" in said


def test_a_defect_in_one_is_shown_and_the_others_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(options: preprocess.PreprocessOptions) -> Path:
        if options.task == "7":
            raise ZeroDivisionError("of our own")
        return Path(str(options.task))

    monkeypatch.setattr(preprocess, "run", prepare)
    with pytest.raises(UserError, match="1 of 2 datasets failed, see above: 7"):
        command(monkeypatch, "--task", "7", "9")
    assert "ZeroDivisionError: of our own" in capsys.readouterr().err


def test_a_single_dataset_fails_with_the_status_of_its_own_error(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        command(monkeypatch, "--data", str(data), "--results", str(data.parent / "results"), "--task", "8")
    assert caught.value.exit_status == 3


@pytest.mark.flag("preprocess:data", "preprocess:results")
def test_the_folders_come_from_the_environment_and_the_command_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(data))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "prepared"))
    command(monkeypatch, "--task", "7")
    assert (tmp_path / "prepared" / "007_3d" / "plan.json").is_file()
    assert f"Options of environment nnUNet_raw: data {data}" in capsys.readouterr().err


@pytest.mark.flag("preprocess:data", "preprocess:results")
def test_a_typed_folder_wins(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nowhere"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "unused"))
    command(monkeypatch, "--data", str(data), "--results", str(tmp_path / "typed"), "--task", "7")
    assert (tmp_path / "typed" / "007_3d" / "plan.json").is_file()
    assert not (tmp_path / "unused").exists()


@pytest.mark.flag("data", "results")
@pytest.mark.parametrize("program", ["main.py", "inference.py", "cascade.py"])
def test_a_run_reads_and_writes_where_the_environment_says(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", "prepared")
    monkeypatch.setenv("nnUNet_results", "models")
    found = read_command([], program=program, description="")
    assert (found.options.data, found.options.results) == (Path("prepared"), Path("models"))
    assert found.origins["results"] == "environment nnUNet_results"
    (tmp_path / "run.toml").write_text('results = "filed"', encoding="utf-8")
    words = ["--config", str(tmp_path / "run.toml"), "--data", "typed"]
    options = read_command(words, program=program, description="").options
    assert (options.data, options.results) == (Path("typed"), Path("filed"))
