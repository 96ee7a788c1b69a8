"""`preprocess.py` from its arguments to its files."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from scripts import preprocess_steps
from scripts.preprocess import PreprocessOptions, run
from tests.stories.made_dataset import describe, prepare, times, write_case, write_dataset
from utils.errors import DatasetError, UserError
from utils.prepared_folder import list_prepared, read_plan
from utils.storage import read_array, read_json, write_array

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"

pytestmark = [pytest.mark.story, pytest.mark.usefixtures("few_draws")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def as_decathlon(data: Path, name: str) -> Path:
    """The same dataset in the Decathlon's layout, instead of nnU-Net's."""
    root = (data / "Dataset007_Made").rename(data / name)
    for image in root.glob("images*/*"):
        image.rename(image.with_name(image.name.replace("_0000", "")))
    names = sorted(path.name for path in (root / "labelsTr").iterdir())
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": ["./imagesTs/unseen.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


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


def test_folds_that_leave_the_dataset_leave_the_folder(data: Path) -> None:
    own = data / "Dataset007_Made" / "splits_final.json"
    own.write_text('[{"train": ["case_0", "case_1"], "val": ["case_2"]}]')
    copy = prepare(data) / "splits_final.json"
    assert copy.is_file()
    prepare(data)
    own.unlink()
    prepare(data)
    assert not copy.exists()


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


@pytest.mark.flag("preprocess:overwrite_target_spacing")
def test_a_new_planner_option_wins_over_the_old_plan(data: Path) -> None:
    prepare(data)
    folder = prepare(data, "--overwrite_target_spacing", "2", "2", "2")
    assert read_plan(folder).spacing_mm == (2.0, 2.0, 2.0)


@pytest.mark.flag("preprocess:keep_plan")
def test_keep_plan_keeps_the_plan_when_cases_are_added(data: Path) -> None:
    folder = prepare(data)
    plan = read_plan(folder)
    write_case(data / "Dataset007_Made", "case_3", 3)
    describe(data / "Dataset007_Made", 4)
    prepare(data, "--keep_plan")
    assert read_plan(folder) == plan
    assert len(list_prepared(folder)) == 4
    assert read_plan(prepare(data, "--results", str(data.parent / "planned_anew"))) != plan


@pytest.mark.flag("preprocess:exec_mode")
def test_test_cases_follow_the_plan_of_training(data: Path) -> None:
    parent = prepare(data)
    folder = prepare(data, "--exec_mode", "test")
    assert folder == parent / "test"
    (case,) = list_prepared(folder)
    assert case.case_id == "unseen"
    assert case.label is None


@pytest.mark.flag("preprocess:exec_mode")
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


@pytest.mark.flag("preprocess:dim")
def test_slices_keep_their_number_in_two_dimensions(data: Path) -> None:
    folder = prepare(data, "--dim", "2")
    assert folder.name == "007_2d"
    assert {case.shape[0] for case in list_prepared(folder)} == {18}
    assert read_plan(folder).patch[0] == 1


@pytest.mark.parametrize(
    ("flags", "channels", "dtype"), [(["--ohe"], 2, "float16"), (["--dtype", "float32"], 1, "float32")]
)
@pytest.mark.flag("preprocess:ohe", "preprocess:dtype")
def test_flags_change_the_stored_image(data: Path, flags: list[str], channels: int, dtype: str) -> None:
    image = read_array(list_prepared(prepare(data, *flags))[0].image)
    assert image.shape[0] == channels
    assert image.dtype == dtype


@pytest.mark.flag("preprocess:verbose")
def test_verbose_prints_the_plan_and_a_line_per_case(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(data / "Dataset007_Made", 3, channel="CT")
    plan = read_plan(prepare(data))
    assert "raw spacing" not in capsys.readouterr().out
    prepare(data, "--verbose", "--results", str(data.parent / "loud"))
    printed = capsys.readouterr().out
    assert printed.count("raw spacing 1 x 1 x 1 mm, mean") == 3
    stats = plan.intensity[0]
    assert f"Channel CT: ct_window, clip {stats.low:g} to {stats.high:g}, mean {stats.mean:g}, std" in printed


@pytest.mark.flag("preprocess:n_jobs")
def test_so_many_processes_give_the_same_arrays_as_one(data: Path) -> None:
    get_reusable_executor().shutdown(wait=True)  # of an earlier test
    alone = [read_array(case.image) for case in list_prepared(prepare(data, "--n_jobs", "1"))]
    assert multiprocessing.active_children() == []
    folder = prepare(data, "--n_jobs", "2", "--results", str(data.parent / "parallel"))
    assert len(multiprocessing.active_children()) == 2
    for first, case in zip(alone, list_prepared(folder), strict=True):
        np.testing.assert_array_equal(first, read_array(case.image))


@pytest.mark.flag("preprocess:task", "preprocess:data")
@pytest.mark.parametrize("layout", ["Dataset007_Made", "Task07_Made"])
@pytest.mark.parametrize("form", ["7", "07", "007", "{name}", "{path}"])
def test_a_task_is_a_number_a_folder_name_or_a_path_in_both_layouts(
    data: Path, layout: str, form: str
) -> None:
    if layout.startswith("Task"):
        as_decathlon(data, layout)
    task = form.format(name=layout, path=data / layout)
    place = data.parent if form == "{path}" else data
    options = PreprocessOptions(data=place, results=data.parent / "results", task=task, n_jobs=1)
    folder = run(options)
    assert folder.name == f"{layout[4:6] if layout.startswith('Task') else '007'}_3d"
    assert len(list_prepared(folder)) == 3


@pytest.mark.flag("preprocess:results")
def test_the_results_land_where_they_are_wanted(data: Path) -> None:
    assert prepare(data, "--results", str(data.parent / "elsewhere")) == data.parent / "elsewhere" / "007_3d"
    assert not (data.parent / "results").exists()


@pytest.mark.flag("preprocess:lowres", "preprocess:patch_size")
def test_the_low_resolution_has_coarser_volumes_in_a_folder_of_its_own(data: Path) -> None:
    fine = prepare(data, "--patch_size", "8", "8", "8")
    coarse = prepare(data, "--patch_size", "8", "8", "8", "--lowres")
    assert (fine.name, coarse.name) == ("007_3d", "007_3d_lowres")
    assert read_plan(fine).patch == read_plan(coarse).patch == (8, 8, 8)
    assert max(list_prepared(coarse)[0].footprint.planned_shape) < 16
    assert list_prepared(fine)[0].footprint.planned_shape == (18, 22, 20)


@pytest.mark.flag("preprocess:allow_external")
def test_files_outside_the_dataset_are_read_only_where_that_is_allowed(data: Path) -> None:
    root = as_decathlon(data, "Task07_Made")
    (root / "imagesTr").rename(data / "outside")
    description = read_json(root / "dataset.json")
    for case in description["training"]:
        case["image"] = case["image"].replace("./imagesTr", "../outside")
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="errors"):
        prepare(data)
    assert len(list_prepared(prepare(data, "--allow_external"))) == 3


@pytest.mark.flag("preprocess:preset", "preprocess:msd_table")
def test_a_decathlon_dataset_gets_nvidias_published_settings_unless_the_table_is_off(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = as_decathlon(data, "Task04_Hippocampus")
    folder = prepare(data, "--task", "4", "--preset", "nvidia")
    plan = read_plan(folder)
    assert (plan.preset, plan.patch, plan.batch_size) == ("nvidia", (40, 56, 40), 2)
    assert {case.shape for case in list_prepared(folder)} == {(40, 56, 40)}  # padded to the patch
    assert (folder / "case_0_meta.npy").is_file()
    published = "patch (40, 56, 40), spacing (1.0, 1.0, 1.0) mm, batch size 2; --no_msd_table"
    assert capsys.readouterr().err.count(published) == 1
    assert read_plan(prepare(data, "--task", "4", "--preset", "nvidia", "--no_msd_table")).patch != plan.patch
    prepare(root.parent, "--task", "4")
    assert "NVIDIA" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "published", "own"),
    [
        (
            ["--patch_size", "24", "24", "24"],
            "spacing (1.0, 1.0, 1.0) mm, batch size 2;",
            "patch (24, 24, 24) as --patch_size says;",
        ),
        (
            ["--overwrite_target_spacing", "1.25", "1", "1"],
            "patch (40, 56, 40), batch size 2;",
            "spacing (1.25, 1.0, 1.0) mm as --overwrite_target_spacing says;",
        ),
    ],
)
def test_what_an_option_overrides_is_not_called_nvidias(
    data: Path, capsys: pytest.CaptureFixture[str], flags: list[str], published: str, own: str
) -> None:
    as_decathlon(data, "Task04_Hippocampus")
    prepare(data, "--task", "4", "--preset", "nvidia", *flags)
    said = " ".join(capsys.readouterr().err.split())
    assert f"configs.py): {published} {own} --no_msd_table" in said


def test_a_dataset_outside_the_table_says_nothing_of_it(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_decathlon(data, "Task04_Made")
    prepare(data, "--task", "4", "--preset", "nvidia")
    assert "NVIDIA" not in capsys.readouterr().err


def test_slices_that_the_table_lacks_are_planned_from_the_data(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data / "Dataset007_Made"
    describe(root, 3)
    description = read_json(root / "dataset.json")
    description["channel_names"] = {str(channel): "MR" for channel in range(4)}
    (root / "dataset.json").write_text(json.dumps(description))
    for image in list(root.glob("images*/*_0000.nii.gz")):
        for channel in range(1, 4):
            image.with_name(image.name.replace("_0000", f"_{channel:04d}")).write_bytes(image.read_bytes())
    root.rename(data / "Dataset011_BraTS2021_train")
    prepare(data, "--task", "11", "--preset", "nvidia", "--dim", "2")
    assert "NVIDIA published no 2d settings" in capsys.readouterr().err


@pytest.mark.flag("preprocess:gpu_memory_target_gb")
def test_less_memory_plans_a_smaller_patch(data: Path) -> None:
    plenty = read_plan(prepare(data))
    little = read_plan(prepare(data, "--gpu_memory_target_gb", "0.02"))
    assert np.prod(little.patch) * little.batch_size < np.prod(plenty.patch) * plenty.batch_size


def test_the_memory_has_nnunets_name_too(data: Path) -> None:
    little = read_plan(prepare(data, "--gpu_memory_target_gb", "0.02"))
    named = prepare(data, "--gpu_memory_target", "0.02", "--results", str(data.parent / "named"))
    assert read_plan(named) == little


@pytest.mark.flag("preprocess:resampling")
def test_images_can_be_resampled_linearly(data: Path) -> None:
    finer = ["--overwrite_target_spacing", "0.8", "0.8", "0.8", "--dtype", "float32"]
    cubic = prepare(data, *finer)
    linear = prepare(data, *finer, "--resampling", "torch", "--results", str(data.parent / "linear"))
    assert read_plan(linear).resampling == "torch"
    first, second = (read_array(list_prepared(folder)[0].image) for folder in (cubic, linear))
    assert first.shape == second.shape
    assert second.std() < 0.97 * first.std()  # interpolated noise is smoother between the voxels
    before = times(linear)
    assert linear.name == "007_3d_default_torch"
    named = ["--plan_name", "default_torch", "--results", str(data.parent / "linear")]
    assert prepare(data, *finer, "--resampling", "torch_sepz", *named) == linear
    assert all(times(linear)[name] != before[name] for name in before)


@pytest.mark.flag("preprocess:depth", "preprocess:min_fmap")
@pytest.mark.parametrize(("flags", "stages"), [([], 3), (["--depth", "1"], 2), (["--min_fmap", "8"], 2)])
def test_depth_and_smallest_map_limit_the_stages(data: Path, flags: list[str], stages: int) -> None:
    plan = read_plan(prepare(data, "--preset", "nvidia", "--patch_size", "16", "16", "16", *flags))
    assert len(plan.stages) == stages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", "0"], "--depth should be at least 1, got 0"),
        (["--min_fmap", "0"], "--min_fmap should be at least 1, got 0"),
        (["--gpu_memory_target_gb", "0"], "--gpu_memory_target_gb should be above 0"),
        (["--overwrite_target_spacing", "1", "nan", "1"], "--overwrite_target_spacing should be above 0"),
        (["--patch_size", "1", "16", "16"], "--patch_size is .1, 16, 16., which does not fit"),
        (["--n_jobs", "0"], "--n_jobs is 0"),
    ],
)
def test_an_impossible_plan_is_refused_before_a_case_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.setattr(preprocess_steps, "survey_cases", None)
    with pytest.raises(UserError, match=message):
        prepare(data, *flags)
    assert not (data.parent / "results").exists()


def test_a_file_may_hold_options_and_the_command_line_wins(data: Path) -> None:
    file = data.parent / "run.toml"
    file.write_text('dtype = "float32"\ndim = 2\n')
    folder = prepare(data, "--config", str(file), "--dim", "3")
    assert folder.name == "007_3d"
    assert read_array(list_prepared(folder)[0].image).dtype == "float32"


@pytest.mark.parametrize("suffix", ["_x.npy", "_y.npy", "_fg.npy", "_orig_lbl.npy", "_meta.npy", ".json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "another"])
def test_a_rerun_mends_a_case_with_a_damaged_file_and_leaves_the_others(
    data: Path, suffix: str, damage: str
) -> None:
    folder = prepare(data, "--preset", "nvidia")
    before, others = times(folder), {path: path.read_bytes() for path in folder.glob("case_1*")}
    harm(folder / f"case_1{suffix}", damage)
    prepare(data, "--preset", "nvidia")
    assert {path: path.read_bytes() for path in folder.glob("case_1*")} == others
    after = times(folder)
    assert {name for name in after if after[name] != before[name]} <= {"case_1_x.npy"}


def harm(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:-7])
    elif damage == "longer":
        path.write_bytes(whole + b"1234567")
    elif damage == "another" and path.suffix == ".npy":
        write_array(path, np.zeros((1, 2, 3, 4), np.int16))
    elif damage == "another":
        path.write_text("{}")


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
