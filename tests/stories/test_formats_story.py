"""Datasets of other formats than NIfTI, from their files to prepared arrays and masks in the same format."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from data_preprocessing.dataset import describe_dataset
from data_preprocessing.volume_io import read_label_volume, read_volume, write_on_grid_of
from scripts import evaluate, inference, preprocess, train
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from tests.dicom_tools import write_series
from tests.stories.conftest import FEW_CHANNELS
from utils.options import parse
from utils.prepared_folder import PLAN, list_prepared, read_plan
from utils.storage import read_array, read_json, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

NUM_PICTURES = 8
SIZE = 48


def rewrite(source: Path, target: Path, *, is_label: bool) -> Path:
    """The same volume in the format of `target`."""
    volume = read_label_volume(source) if is_label else read_volume(source)
    write_on_grid_of(volume, target, volume.voxels)
    return target


def prepare(root: Path, results: Path, *, dim: int) -> Path:
    words = ["--data", str(root.parent), "--results", str(results), "--task", root.name]
    words += ["--dim", str(dim), "--n_jobs", "1"]
    options = parse(preprocess.PreprocessOptions, words, program="preprocess.py", description="")
    return preprocess.run(options)


@pytest.mark.parametrize("ending", [".nrrd", ".mhd"])
def test_a_dataset_of_another_format_becomes_the_arrays_of_its_nifti_copy(
    phantom: "Phantom", tmp_path: Path, ending: str
) -> None:
    root = tmp_path / "raw" / "Dataset501_Other"
    cases = sorted((phantom.raw / "train").glob("*/*_0000.nii.gz"))[:3]
    for image in cases:
        case_id = image.name.removesuffix("_0000.nii.gz")
        rewrite(image, root / "imagesTr" / f"{case_id}_0000{ending}", is_label=False)
        label = image.with_name(f"{case_id}.nii.gz")
        rewrite(label, root / "labelsTr" / f"{case_id}{ending}", is_label=True)
        for part, name in (("imagesTr", f"{case_id}_0000"), ("labelsTr", case_id)):
            source = image if part == "imagesTr" else label
            copy = tmp_path / "raw" / "Dataset502_Nifti" / part / f"{name}.nii.gz"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": len(cases),
    }
    write_json(root / "dataset.json", description | {"file_ending": ending})
    write_json(root.with_name("Dataset502_Nifti") / "dataset.json", description)
    other = list_prepared(prepare(root, tmp_path / "out", dim=3))
    nifti = list_prepared(prepare(root.with_name("Dataset502_Nifti"), tmp_path / "out", dim=3))
    for first, second in zip(other, nifti, strict=True):
        np.testing.assert_array_equal(read_array(first.image), read_array(second.image))
        assert first.label is not None
        assert second.label is not None
        np.testing.assert_array_equal(read_array(first.label), read_array(second.label))
        assert (first.footprint.mask_ending, second.footprint.mask_ending) == (ending, ".nii.gz")
        np.testing.assert_allclose(first.footprint.affine, second.footprint.affine, atol=1e-5)
    assert describe_dataset(root).faults == ()  # voxels of a .mhd are no stray files


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_scan_is_predicted_into_its_own_format(
    phantom: "Phantom", trained: Path, run_options: Callable[..., RunOptions], tmp_path: Path, ending: str
) -> None:
    scan = sorted((phantom.raw / "test").glob("*_0000.nii.gz"))[0]
    rewrite(scan, tmp_path / "in" / f"other{ending}", is_label=False)
    (tmp_path / "in" / "same.nii.gz").write_bytes(scan.read_bytes())
    inference.run(run_options(trained, "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")))
    mask, copy = (read_label_volume(tmp_path / "out" / name) for name in (f"other{ending}", "same.nii.gz"))
    np.testing.assert_array_equal(mask.voxels, copy.voxels)
    np.testing.assert_allclose(mask.affine, copy.affine, atol=1e-5)


def test_a_folder_of_dicom_is_predicted_series_by_series(
    trained: Path, run_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 2000, (24, 20, 10)).astype(np.int16)
    write_series(tmp_path / "in" / "first", noise)
    write_series(tmp_path / "in" / "second", noise[:, :, :8])
    inference.run(run_options(trained, "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")))
    for name, slices in (("first", 10), ("second", 8)):
        mask = read_label_volume(tmp_path / "out" / f"{name}.nii.gz")
        scan = read_volume(tmp_path / "in" / name / "IM001")
        assert mask.voxels.shape == (24, 20, slices)
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)


def draw_pictures(root: Path) -> None:
    """Colour pictures of a bright square on noise, and its place as an integer PNG."""
    rng = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        picture = rng.integers(1, 100, (SIZE, SIZE, 3), np.uint8)
        label = np.zeros((SIZE, SIZE), np.uint8)
        top, left = rng.integers(4, 28, 2)
        label[top : top + 16, left : left + 12] = 1
        picture[label > 0] += np.array([150, 20, 0], np.uint8)
        part = "Tr" if index < NUM_PICTURES - 2 else "Ts"
        for folder, name, pixels in (("images", f"p{index}_0000", picture), ("labels", f"p{index}", label)):
            (root / f"{folder}{part}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / f"{folder}{part}" / f"{name}.png")
    description = {
        "channel_names": {"0": "rgb_to_0_1", "1": "rgb_to_0_1", "2": "rgb_to_0_1"},
        "labels": {"background": 0, "square": 1},
        "numTraining": NUM_PICTURES - 2,
        "file_ending": ".png",
    }
    write_json(root / "dataset.json", description)


def test_pictures_are_prepared_trained_on_and_predicted_as_png(tmp_path: Path) -> None:
    root = tmp_path / "raw" / "Dataset503_Pictures"
    draw_pictures(root)
    folder = prepare(root, tmp_path / "prepared", dim=2)
    plan = read_plan(folder)
    assert (plan.patch[0], plan.num_channels, plan.normalisers) == (1, 3, ("rgb",) * 3)
    assert [case.shape for case in list_prepared(folder)] == [(1, SIZE, SIZE)] * (NUM_PICTURES - 2)
    stages = [{**stage, "channels": FEW_CHANNELS} for stage in read_json(folder / PLAN)["stages"][:3]]
    write_json(
        folder / PLAN, read_json(folder / PLAN) | {"stages": stages, "patch": [1, 32, 32], "batch_size": 2}
    )
    prepare(root, tmp_path / "prepared", dim=2)  # a plan edited by hand is honoured
    words = ["--data", str(tmp_path / "prepared"), "--results", str(tmp_path / "results"), "--task", "503"]
    words += [
        "--dim",
        "2",
        "--device",
        "cpu",
        "--epochs",
        "1",
        "--steps_per_epoch",
        "1",
        "--num_workers",
        "1",
    ]
    words += ["--nfolds", "2", "--augment", "none"]
    train.run(read_command(words, program="main.py", description="").options)
    more = ["-i", str(root / "imagesTs"), "-o", str(tmp_path / "out")]
    inference.run(read_command([*words, *more], program="main.py", description="").options)
    masks = sorted((tmp_path / "out").glob("*.png"))
    assert [mask.name for mask in masks] == ["p6.png", "p7.png"]
    for mask in masks:
        with Image.open(mask) as picture:
            assert (picture.size, picture.mode) == ((SIZE, SIZE), "L")
    scored = ["--preds", str(tmp_path / "out"), "--lbls", str(root / "labelsTs"), "--n_jobs", "1"]
    evaluate.run(parse(evaluate.EvaluateOptions, scored, program="evaluate.py", description=""))
    assert (tmp_path / "out" / "summary.json").is_file()
