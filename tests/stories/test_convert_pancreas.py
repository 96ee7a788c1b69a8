"""`python scripts/convert_pancreas.py` from the challenge's folders to datasets that preprocessing reads."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_preprocessing.dataset import read_dataset
from data_preprocessing.faults import DatasetFaults
from data_preprocessing.volume_io import read_volume, write_volume
from scripts import preprocess
from scripts.convert_pancreas import ConvertOptions, run
from utils.errors import UserError
from utils.splits import read_folds
from utils.storage import file_hash, read_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (9, 8, 5)  # (x, y, z)
AFFINE = np.array([[-0.7, 0, 0, 11], [0, -0.7, 0, 7], [0, 0, 2.0, -3], [0, 0, 0, 1]])
NOT_QUITE_ONE = np.float32(1.0000152587890625)
LABELLED = {
    "train/subtype0": ("quiz_0_001", "quiz_0_004"),
    "train/subtype1": ("quiz_1_007", "quiz_1_011"),
    "validation/subtype1": ("quiz_1_020",),
}


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=2, spacing_mm=(0.7, 0.7, 2.0))


def mask(one: np.float32 = NOT_QUITE_ONE) -> np.ndarray:
    label = np.zeros(SHAPE, np.float32)
    label[2:6, 2:6, 1:4] = one
    label[3, 3, 2] = 2
    return label


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """Five labelled cases, the last of which stores whole numbers, and one test case."""
    root = tmp_path / "challenge"
    generator = np.random.default_rng(0)
    for folder, names in LABELLED.items():
        for name in names:
            write(root / folder / f"{name}_0000.nii.gz", generator.normal(size=SHAPE).astype(np.float32))
            write(root / folder / f"{name}.nii.gz", mask())
    write(root / "validation/subtype1/quiz_1_020.nii.gz", mask(np.float32(1)))
    write(root / "test/quiz_030_0000.nii.gz", generator.normal(size=SHAPE).astype(np.float32))
    return root


def convert(challenge: Path, **changes: object) -> tuple[Path, ...]:
    fields = {"src_dir": challenge, "nnunet_dir": challenge.parent / "out", "dataset_id": 42, "n_jobs": 1}
    return run(ConvertOptions(**{**fields, **changes}))  # type: ignore[arg-type]


@pytest.mark.flag(
    "convert_pancreas:dataset_name",
    "convert_pancreas:dataset_id",
    "convert_pancreas:src_dir",
    "convert_pancreas:nnunet_dir",
)
def test_the_command_writes_both_layouts_that_preprocessing_reads(challenge: Path) -> None:
    out = challenge.parent / "out"
    command = [sys.executable, str(ROOT / "scripts/convert_pancreas.py"), "--src_dir", str(challenge)]
    command += ["--nnUNet_dir", str(out), "--dataset_id", "7", "--dataset_name", "Quiz", "--n_jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 of 5 masks stored labels near a whole number: 188 voxels rounded." in done.stdout
    v2, decathlon = (read_dataset(path) for path in (out / "Dataset007_Quiz", out / "decathlon/Task007_Quiz"))
    for dataset in (v2, decathlon):
        assert dataset.class_names == ("0", "1")
        assert [case.class_target for case in dataset.training] == [0, 0, 1, 1, 1]
        assert [case.case_id for case in dataset.test] == ["quiz_030"]
        assert dataset.label_names == ("background", "pancreas", "lesion")
    words = {"data": out, "results": challenge.parent / "prepared", "task": "7", "n_jobs": 1}
    folder = preprocess.run(preprocess.PreprocessOptions(**words))
    assert len(list(folder.glob("*_x.npy"))) == 5


def test_the_official_fold_stands_in_the_splits(challenge: Path) -> None:
    for root in convert(challenge):
        (fold,) = read_folds(root / "splits_final.json")
        assert fold.train == ("quiz_0_001", "quiz_0_004", "quiz_1_007", "quiz_1_011")
        assert fold.val == ("quiz_1_020",)


@pytest.mark.flag("convert_pancreas:train_folds")
def test_further_folds_stay_inside_the_training_part_and_hold_every_subtype(challenge: Path) -> None:
    (root,) = convert(challenge, layout="nnunet", train_folds=2)
    folds = read_folds(root / "splits_final.json")
    assert len(folds) == 3
    for fold in folds[1:]:
        assert "quiz_1_020" not in {*fold.train, *fold.val}
        assert sorted(name[:6] for name in fold.val) == ["quiz_0", "quiz_1"]


@pytest.mark.flag("convert_pancreas:validation_apart", "convert_pancreas:layout")
def test_validation_may_lie_apart_from_training(challenge: Path) -> None:
    (root,) = convert(challenge, layout="decathlon", validation_apart=True)
    assert root.name == "Task042_Pancreas"
    assert (root / "imagesVal/quiz_1_020.nii.gz").is_file()
    assert (root / "labelsVal/quiz_1_020.nii.gz").is_file()
    assert len(read_dataset(root).training) == 4
    assert not (root / "splits_final.json").exists()
    assert read_json(root / "classification.json")["quiz_1_020"] == 1


def test_masks_become_whole_numbers_under_their_own_geometry(challenge: Path) -> None:
    (root,) = convert(challenge, layout="nnunet")
    source = challenge / "train/subtype0/quiz_0_001.nii.gz"
    written = nibabel.load(root / "labelsTr/quiz_0_001.nii.gz")  # type: ignore[attr-defined]
    before = nibabel.load(source)  # type: ignore[attr-defined]
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), mask(np.float32(1)))
    np.testing.assert_array_equal(written.affine, before.affine)
    for code in ("qform_code", "sform_code"):
        assert written.header[code] == before.header[code]
    np.testing.assert_array_equal(written.header.get_zooms(), before.header.get_zooms())


def test_the_audit_has_the_hash_of_every_file_and_the_count_of_repairs(challenge: Path) -> None:
    (root,) = convert(challenge, layout="nnunet")
    audit = read_json(root / "audit.json")
    case = next(case for case in audit["cases"] if case["case_id"] == "quiz_0_001")
    image = challenge / "train/subtype0/quiz_0_001_0000.nii.gz"
    assert case["image_hash"] == file_hash(image)
    assert case["label_voxels"] == [9 * 8 * 5 - 48, 47, 1]
    assert case["repaired_voxels"] == 47
    assert (audit["repaired_masks"], audit["repaired_voxels"]) == (4, 4 * 47)
    assert audit["written"]["imagesTr/quiz_0_001_0000.nii.gz"] == file_hash(image)
    written = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert set(audit["written"]) == written - {"audit.json"}


def test_a_copy_in_another_split_is_refused_whatever_its_compression(challenge: Path) -> None:
    copied = read_volume(challenge / "train/subtype0/quiz_0_001_0000.nii.gz")
    write(challenge / "validation/subtype1/quiz_1_099_0000.nii", copied.voxels)
    write(challenge / "validation/subtype1/quiz_1_099.nii.gz", mask())
    with pytest.raises(DatasetFaults, match=r"E308 case quiz_1_099.*\(validation\).*quiz_0_001 \(train\)"):
        convert(challenge)
    assert not (challenge.parent / "out").exists()


def test_labels_far_from_whole_numbers_and_undeclared_ones_are_refused_together(challenge: Path) -> None:
    write(challenge / "train/subtype0/quiz_0_001.nii.gz", mask(np.float32(1.01)))
    write(challenge / "train/subtype0/quiz_0_004.nii.gz", mask() + 2)
    with pytest.raises(DatasetFaults) as caught:
        convert(challenge)
    assert {(fault.code, fault.case_id) for fault in caught.value.faults} == {
        ("E303", "quiz_0_001"),
        ("E304", "quiz_0_004"),
    }


def test_a_mask_on_another_grid_is_refused(challenge: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    write(challenge / "train/subtype1/quiz_1_007.nii.gz", mask(), shifted)
    with pytest.raises(DatasetFaults, match="E307 case quiz_1_007"):
        convert(challenge)


def test_an_uncompressed_image_is_compressed_so_that_its_name_is_true(challenge: Path) -> None:
    image = challenge / "train/subtype0/quiz_0_001_0000.nii.gz"
    volume = read_volume(image)
    image.unlink()
    write(image.with_name("quiz_0_001_0000.nii"), volume.voxels)
    (root,) = convert(challenge, layout="nnunet")
    again = read_volume(root / "imagesTr/quiz_0_001_0000.nii.gz")
    assert again.remarks == ()
    np.testing.assert_array_equal(again.voxels, volume.voxels)


def test_nothing_is_overwritten(challenge: Path) -> None:
    convert(challenge, layout="nnunet")
    with pytest.raises(UserError, match="is there already"):
        convert(challenge, layout="nnunet")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_id": 0}, "1 to 999"),
        ({"n_jobs": 0}, "--n_jobs is 0"),
        ({"dataset_name": "a/b"}, "letters"),
        ({"train_folds": 1}, "at least 2"),
        ({"src_dir": Path("/nowhere")}, "not a folder"),
    ],
)
def test_options_that_make_no_sense_are_named(
    challenge: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        convert(challenge, **changes)
