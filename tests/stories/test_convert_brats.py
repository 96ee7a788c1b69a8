"""`scripts/convert_brats.py`: BraTS's folders -> dataset, and predicted masks -> BraTS's values."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.brats import CHANNEL_NAMES, LABEL_NAMES, MODALITIES, from_brats, to_brats
from data_preprocessing.brats_phantom import BratsPhantomOptions
from data_preprocessing.dataset import read_dataset
from data_preprocessing.faults import DatasetFaults
from data_preprocessing.msd_presets import TASKS
from data_preprocessing.volume_io import Volume, read_label_volume, read_volume, write_volume
from scripts.convert_brats import ConvertOptions, run
from utils.errors import UserError

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brats")
    phantom = BratsPhantomOptions(num_train=2, num_test=1)
    where = {"src_dir": root / "train", "test_dir": root / "test", "n_jobs": 1}
    run(ConvertOptions(exec_mode="phantom", phantom=phantom, **where))
    return root


@pytest.fixture
def options(drawn: Path, tmp_path: Path) -> ConvertOptions:
    """Of a conversion of a copy of the patients."""
    shutil.copytree(drawn, tmp_path / "raw")
    return ConvertOptions(
        src_dir=tmp_path / "raw" / "train",
        test_dir=tmp_path / "raw" / "test",
        data=tmp_path / "data",
        n_jobs=1,
    )


def file_of(folder: Path, name: str) -> Path:
    """The file `name` of the first patient."""
    return sorted(folder.glob(f"*/*_{name}.nii.gz"))[0]


def rewrite(path: Path, voxels: np.ndarray, volume: Volume, **changes) -> None:
    kept = {name: getattr(volume, name) for name in ("affine", "qform_code", "sform_code", "spacing_mm")}
    write_volume(path, voxels, **{**kept, **changes})


@pytest.mark.flag("convert_brats:num_train", "convert_brats:num_test", "convert_brats:test_dir")
def test_the_dataset_is_read_as_a_decathlon_task_of_four_channels(options: ConvertOptions) -> None:
    dataset = read_dataset(run(options))
    assert dataset.name == "Task11_BraTS2021_train"
    assert (dataset.channel_names, dataset.label_names) == (CHANNEL_NAMES, LABEL_NAMES)
    assert [case.case_id for case in dataset.training] == ["BraTS2021_00000", "BraTS2021_00001"]
    assert [(case.case_id, case.label) for case in dataset.test] == [("BraTS2021_01702", None)]


def test_the_folder_is_called_as_nvidias_published_settings_expect(options: ConvertOptions) -> None:
    assert options.name in {task.name for task in TASKS if task.number == int(options.task)}


def test_channels_and_labels_are_those_of_the_files(options: ConvertOptions) -> None:
    root = run(options)
    case = read_dataset(root).training[0]
    stacked = read_volume(case.images[0])
    parts = [read_volume(file_of(options.src_dir, name)) for name in MODALITIES]
    assert np.array_equal(stacked.voxels, np.stack([part.voxels for part in parts], axis=-1))
    assert np.array_equal(stacked.affine, parts[0].affine)
    assert case.label is not None
    drawn = read_label_volume(file_of(options.src_dir, "seg"))
    label = read_label_volume(case.label)
    for brats_value, ours in ((0, 0), (1, 1), (2, 2), (4, 3)):
        assert np.array_equal(label.voxels == ours, drawn.voxels == brats_value)


def test_fractions_of_an_image_are_kept(options: ConvertOptions) -> None:
    path = file_of(options.src_dir, "t1")
    volume = read_volume(path)
    rewrite(path, volume.voxels / 7, volume)
    case = read_dataset(run(options)).training[0]
    assert np.array_equal(read_volume(case.images[0]).voxels[..., 1], volume.voxels / 7)


@pytest.mark.flag("convert_brats:exec_mode", "convert_brats:results")
def test_masks_come_back_with_brats_values_bit_by_bit(options: ConvertOptions, tmp_path: Path) -> None:
    root = run(options)
    masks = {"src_dir": root / "labelsTr", "results": tmp_path / "back"}
    run(replace(options, exec_mode="masks", **masks))
    back = read_label_volume(tmp_path / "back" / "BraTS2021_00000.nii.gz")
    drawn = read_label_volume(file_of(options.src_dir, "seg"))
    assert np.array_equal(back.voxels, drawn.voxels)
    assert np.array_equal(back.affine, drawn.affine)


def test_label_values_are_each_others_inverse() -> None:
    assert to_brats(np.array([0, 1, 2, 3])).tolist() == [0, 1, 2, 4]
    assert from_brats(np.array([4, 2, 1, 0])).tolist() == [3, 2, 1, 0]


def test_every_missing_file_is_named_at_once(options: ConvertOptions) -> None:
    file_of(options.src_dir, "t1ce").unlink()
    sorted(options.src_dir.glob("*/*_seg.nii.gz"))[1].unlink()
    with pytest.raises(DatasetFaults) as caught:
        run(options)
    assert "BraTS2021_00000_t1ce.nii.gz missing" in str(caught.value)
    assert "BraTS2021_00001_seg.nii.gz missing" in str(caught.value)


def test_a_file_that_is_there_compressed_and_plain_is_refused(options: ConvertOptions) -> None:
    path = file_of(options.src_dir, "t2")
    shutil.copy(path, path.with_suffix(""))
    with pytest.raises(DatasetFaults, match="keep one of the two"):
        run(options)


def test_a_label_value_that_brats_does_not_have_is_refused(options: ConvertOptions) -> None:
    path = file_of(options.src_dir, "seg")
    mask = read_label_volume(path)
    mask.voxels[mask.voxels == 4] = 3
    rewrite(path, mask.voxels, mask)
    with pytest.raises(DatasetFaults, match="E304 case BraTS2021_00000"):
        run(options)


def test_a_contrast_on_another_grid_is_refused(options: ConvertOptions) -> None:
    path = file_of(options.src_dir, "t1")
    volume = read_volume(path)
    moved = volume.affine.copy()
    moved[0, 3] += 2
    rewrite(path, volume.voxels, volume, affine=moved)
    with pytest.raises(DatasetFaults, match="E307 case BraTS2021_00000"):
        run(options)


def test_after_an_error_no_description_promises_a_dataset(options: ConvertOptions) -> None:
    root = run(options)
    file_of(options.src_dir, "t1").write_bytes(b"cut off")
    with pytest.raises(DatasetFaults):
        run(options)
    assert not (root / "dataset.json").exists()


def test_masks_of_test_patients_are_not_read(options: ConvertOptions) -> None:
    assert options.test_dir is not None
    scan = file_of(options.test_dir, "flair")
    scan.with_name(scan.name.replace("flair", "seg")).write_bytes(b"no mask")
    assert len(read_dataset(run(options)).test) == 1


def test_masks_with_other_values_are_refused(options: ConvertOptions, tmp_path: Path) -> None:
    masks = file_of(options.src_dir, "seg").parent
    with pytest.raises(UserError, match="E304"):
        run(replace(options, exec_mode="masks", src_dir=masks, results=tmp_path / "back"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exec_mode": "phantom"}, "is not empty"),
        ({"exec_mode": "masks"}, "needs --results"),
        ({"task": "BraTS"}, "--task should be a number"),
        ({"task": "\uff11\uff11"}, "--task should be a number"),
        ({"name": "../BraTS"}, "--name should consist"),
        ({"src_dir": Path("nowhere")}, "no folder of a patient"),
        ({"n_jobs": 0}, "--n_jobs is 0"),
    ],
)
def test_wrong_wishes_are_refused(options: ConvertOptions, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(options, **changes))


def test_no_made_up_patients_are_refused_and_none_are_told_where_none_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = {"exec_mode": "phantom", "src_dir": tmp_path / "train", "test_dir": tmp_path / "test"}
    with pytest.raises(UserError, match="--num_train should be at least 1, got 0"):
        run(ConvertOptions(**where, phantom=BratsPhantomOptions(num_train=0)))
    assert capsys.readouterr().out == ""
    run(ConvertOptions(**where, phantom=BratsPhantomOptions(num_train=1, num_test=0)))
    assert capsys.readouterr().out == f"Made-up patients in {tmp_path / 'train'}\n"


def test_a_patient_in_both_folders_is_refused(options: ConvertOptions) -> None:
    with pytest.raises(UserError, match="in both folders"):
        run(replace(options, test_dir=options.src_dir))


@pytest.mark.flag("convert_brats:src_dir", "convert_brats:data", "convert_brats:task", "convert_brats:name")
def test_the_command_runs_from_any_folder(drawn: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "convert_brats.py"), "--src_dir", str(drawn / "train")]
    command += ["--data", str(tmp_path), "--task", "77", "--name", "Glioma", "--n_jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "2 patients for training, 0 to predict" in done.stdout
    assert (tmp_path / "Task77_Glioma" / "dataset.json").is_file()
