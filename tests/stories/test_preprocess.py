"""`preprocess.py` from its arguments to its files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import write_volume
from scripts.preprocess import PreprocessOptions, run
from utils.errors import DatasetError
from utils.options import parse
from utils.prepared_folder import list_prepared, read_plan
from utils.storage import read_array, read_json

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.story


def write_case(root: Path, name: str, seed: int, *, folder: str = "Tr") -> None:
    generator = np.random.default_rng(seed)
    image = generator.normal(100, 20, (20, 22, 18)).astype(np.float32)
    label = np.zeros(image.shape, np.int16)
    label[6:12, 6:12, 6:12] = 1
    image[label == 1] += 100
    geometry = {"affine": np.eye(4), "qform_code": 1, "sform_code": 1, "spacing_mm": (1.0, 1.0, 1.0)}
    write_volume(root / f"images{folder}" / f"{name}_0000.nii.gz", image, **geometry)
    if folder == "Tr":
        write_volume(root / f"labels{folder}" / f"{name}.nii.gz", label, **geometry)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "Dataset007_Made"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for seed in range(3):
        write_case(root, f"case_{seed}", seed)
    write_case(root, "unseen", 9, folder="Ts")
    describe(root, 3)
    return tmp_path / "data"


def describe(root: Path, count: int) -> None:
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))


def prepare(data: Path, *flags: str) -> Path:
    words = ["--data", str(data), "--results", str(data.parent / "results"), "--task", "7", "--n_jobs", "1"]
    return run(parse(PreprocessOptions, [*words, *flags], program="preprocess.py", description=""))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("case_*_x.npy")}


def test_training_writes_every_file_of_the_format(data: Path) -> None:
    folder = prepare(data)
    assert folder.name == "007_3d"
    names = {path.name for path in folder.iterdir()}
    assert {"plan.json", "fingerprint.json", "dataset.json", "manifest.json"} <= names
    assert {f"case_0{end}" for end in ("_x.npy", "_y.npy", "_fg.npy", "_orig_lbl.npy", ".json")} <= names
    assert [case.case_id for case in list_prepared(folder)] == ["case_0", "case_1", "case_2"]


def test_a_second_run_touches_no_case(data: Path) -> None:
    before = times(prepare(data))
    assert times(prepare(data)) == before


def test_only_the_edited_case_is_redone(data: Path) -> None:
    before = times(prepare(data))
    write_case(data / "Dataset007_Made", "case_1", 77)
    after = times(prepare(data))
    assert {name for name in after if after[name] != before[name]} == {"case_1_x.npy"}


def test_a_removed_case_leaves_the_folder(data: Path) -> None:
    folder = prepare(data)
    for path in (data / "Dataset007_Made").rglob("case_2*"):
        path.unlink()
    describe(data / "Dataset007_Made", 2)
    prepare(data)
    assert [case.case_id for case in list_prepared(folder)] == ["case_0", "case_1"]
    assert list(folder.glob("case_2*")) == []


def test_an_interrupted_run_is_completed(data: Path) -> None:
    folder = prepare(data)
    before = times(folder)
    (folder / "case_0.json").unlink()
    prepare(data)
    assert len(list_prepared(folder)) == 3
    assert times(folder)["case_1_x.npy"] == before["case_1_x.npy"]


def test_a_plan_edited_by_hand_is_honoured(data: Path) -> None:
    folder = prepare(data)
    plan = read_json(folder / "plan.json")
    plan["spacing_mm"] = [2.0, 1.0, 1.0]
    (folder / "plan.json").write_text(json.dumps(plan))
    prepare(data)
    assert read_plan(folder).spacing_mm == (2.0, 1.0, 1.0)
    assert list_prepared(folder)[0].footprint.planned_shape == (9, 22, 20)


def test_a_new_planner_option_wins_over_the_old_plan(data: Path) -> None:
    prepare(data)
    folder = prepare(data, "--overwrite_target_spacing", "2", "2", "2")
    assert read_plan(folder).spacing_mm == (2.0, 2.0, 2.0)


def test_keep_plan_keeps_the_plan_when_cases_are_added(data: Path) -> None:
    folder = prepare(data)
    plan = read_plan(folder)
    write_case(data / "Dataset007_Made", "case_3", 3)
    describe(data / "Dataset007_Made", 4)
    prepare(data, "--keep_plan")
    assert read_plan(folder) == plan
    assert len(list_prepared(folder)) == 4


def test_test_cases_follow_the_plan_of_training(data: Path) -> None:
    parent = prepare(data)
    folder = prepare(data, "--exec_mode", "test")
    assert folder == parent / "test"
    (case,) = list_prepared(folder)
    assert case.case_id == "unseen"
    assert case.label is None


def test_val_holds_the_training_cases_without_planned_labels(data: Path) -> None:
    prepare(data)
    folder = prepare(data, "--exec_mode", "val")
    assert [case.label for case in list_prepared(folder)] == [None, None, None]
    assert (folder / "case_0_orig_lbl.npy").is_file()


def test_test_before_training_says_what_to_do(data: Path) -> None:
    with pytest.raises(DatasetError, match="training mode"):
        prepare(data, "--exec_mode", "test")


def test_every_bad_file_is_listed_and_nothing_is_prepared(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("case_0", "case_2"):
        image = data / "Dataset007_Made" / "imagesTr" / f"{name}_0000.nii.gz"
        image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(DatasetError, match="2 errors"):
        prepare(data)
    printed = capsys.readouterr().err
    assert "case_0" in printed
    assert "case_2" in printed
    folder = data.parent / "results" / "007_3d"
    assert list(folder.glob("*.npy")) == []
    assert len(read_json(folder / "faults.json")) == 2


def test_slices_keep_their_number_in_two_dimensions(data: Path) -> None:
    folder = prepare(data, "--dim", "2")
    assert folder.name == "007_2d"
    assert {case.shape[0] for case in list_prepared(folder)} == {18}
    assert read_plan(folder).patch[0] == 1


@pytest.mark.parametrize(
    ("flags", "channels", "dtype"), [(["--ohe"], 2, "float16"), (["--dtype", "float32"], 1, "float32")]
)
def test_flags_change_the_stored_image(data: Path, flags: list[str], channels: int, dtype: str) -> None:
    image = read_array(list_prepared(prepare(data, *flags))[0].image)
    assert image.shape[0] == channels
    assert image.dtype == dtype


def test_verbose_prints_a_line_per_case(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(data, "--verbose")
    assert capsys.readouterr().out.count("raw spacing") == 3


def test_workers_give_the_same_arrays_as_one_process(data: Path) -> None:
    alone = [read_array(case.image) for case in list_prepared(prepare(data))]
    folder = prepare(data, "--n_jobs", "2", "--results", str(data.parent / "parallel"))
    for first, case in zip(alone, list_prepared(folder), strict=True):
        np.testing.assert_array_equal(first, read_array(case.image))


@pytest.mark.parametrize("entry", ["preprocess.py", "scripts/preprocess.py"])
def test_help_imports_neither_torch_nor_dali(entry: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / entry), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "--exec_mode" in result.stdout
    assert not {"torch", "nvidia.dali", "nibabel"} & {
        line.split("|")[-1].strip() for line in result.stderr.splitlines()
    }


def test_a_wrong_task_ends_with_status_two(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "preprocess.py"), "--data", str(tmp_path), "--task", "99"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


@pytest.mark.real_data
def test_the_hippocampus_is_planned_and_prepared(tmp_path: Path) -> None:
    if not (REAL / "Task04_Hippocampus").is_dir():
        pytest.skip("the real datasets are not in ../shared/data")
    folder = run(PreprocessOptions(data=REAL, results=tmp_path, task="04", n_jobs=2))
    assert len(list_prepared(folder)) == 220
    assert read_plan(folder).patch == (40, 56, 40)
