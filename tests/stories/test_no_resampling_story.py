"""A planner without resampling: cases keep their own grid from preprocess.py to the exported mask."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_preprocessing import prepare as preparing
from data_preprocessing import restore, workers
from data_preprocessing.volume_io import write_volume
from scripts import inference, train
from scripts.run_recipes import read_command
from tests.stories.made_dataset import prepare, write_dataset
from utils.contracts import Shape, Spacing
from utils.prepared_folder import list_prepared, read_plan
from utils.storage import read_array

pytestmark = pytest.mark.story


def write_coarse(path: Path, shape: Shape, spacing_mm: Spacing) -> None:
    """A scan whose spacing no other case has."""
    voxels = np.random.default_rng(5).normal(100, 20, shape).astype(np.float32)
    affine = np.diag([*spacing_mm, 1.0])
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=1, spacing_mm=spacing_mm)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The intensities of a made dataset need no hundred million draws.
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 3000 // num_cases)
    folder = write_dataset(tmp_path)
    root = folder / "Dataset007_Made"
    write_coarse(root / "imagesTr" / "case_2_0000.nii.gz", (20, 22, 18), (1.0, 1.5, 2.0))
    label = np.zeros((20, 22, 18), np.int16)
    label[4:9, 4:9, 4:9] = 1
    geometry = {"affine": np.diag([1.0, 1.5, 2.0, 1.0]), "qform_code": 1, "sform_code": 1}
    write_volume(root / "labelsTr" / "case_2.nii.gz", label, spacing_mm=(1.0, 1.5, 2.0), **geometry)
    write_coarse(tmp_path / "scans" / "scan_0000.nii.gz", (17, 21, 19), (0.7, 0.7, 3.0))
    return folder


@pytest.mark.flag("preprocess:planner")
def test_cases_keep_their_own_grid_from_the_scan_to_its_mask(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(data, "--planner", "nnUNetPlannerResEncL_noResampling")
    assert folder.name == "007_3d_resenc_l_none"
    assert (read_plan(folder).planner, read_plan(folder).resampling) == ("resenc_l", "none")
    coarse = list_prepared(folder)[2]
    assert coarse.footprint.planned_shape == coarse.footprint.cropped_shape == (18, 22, 20)
    assert coarse.label is not None
    assert (read_array(coarse.label) == 1).sum() == 5**3

    words = ["--data", str(folder.parent), "--task", "7", "--plan", "resenc_l_none", "--nfolds", "3"]
    words += ["--device", "cpu", "--num_workers", "1", "--filters", "2", "--overlap", "0"]
    words += ["--results", str(tmp_path / "run")]
    short = ["--epochs", "1", "--steps_per_epoch", "1", "--batch_size", "1"]
    train.run(read_command([*words, *short], program="main.py", description="").options)

    seen: list[tuple[Shape, Shape]] = []

    def watched(module: object, name: str) -> None:
        original = getattr(module, name)

        def watch(volume: np.ndarray, new_shape: Shape, **ways: object) -> object:
            seen.append((tuple(volume.shape[-3:]), tuple(new_shape)))  # type: ignore[arg-type]
            return original(volume, new_shape, **ways)

        monkeypatch.setattr(module, name, watch)

    watched(preparing, "resample_image")
    watched(restore, "resample_probability")
    scan = ["--exec_mode", "predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "masks")]
    inference.run(read_command([*words, *scan], program="main.py", description="").options)
    assert seen
    assert all(before == after for before, after in seen)
    mask, image = (nibabel.load(tmp_path / name) for name in ("masks/scan.nii.gz", "scans/scan_0000.nii.gz"))
    assert mask.shape == image.shape == (17, 21, 19)  # type: ignore[attr-defined]
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)  # type: ignore[attr-defined]
