"""Arrays beside the masks: what lies in them, on which grid, and that half a file is none."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.restore import painted_regions
from data_preprocessing.volume_io import read_label_volume, write_volume
from nnunet.options import TrainingOptions
from scripts.ensemble_folders import EnsembleOptions, run
from scripts.predict_scans import predict_scans
from scripts.prediction_arrays import ArrayFiles, write_probabilities
from scripts.run_options import RunOptions
from tests.scripts.test_ensemble import alone, save_model
from utils.contracts import Plan
from utils.errors import UserError
from utils.storage import read_array, read_json

Plans = Callable[..., Plan]
REGIONS = {"regions": ((1, 2), (2,)), "region_names": ("whole", "lesion"), "regions_class_order": (1, 2)}
HALF = 1e-3  # what half precision leaves of a probability


def probabilities_of(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["probabilities"]
        return archive["probabilities"]


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    """Predict a made scan, of which a part is cropped away, with both kinds of arrays."""
    path = tmp_path / "scans" / "scan_0000.nii.gz"
    voxels = np.random.default_rng(0).normal(100, 20, (14, 12, 5)).astype(np.float32)
    voxels[:3] = 0
    affine = np.diag([1.1, -1.0, 2.5, 1.0])
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=1, spacing_mm=(1.1, 1.0, 2.5))
    return RunOptions(
        exec_mode="predict",
        device="cpu",
        input=path,
        output=tmp_path / "out",
        results=tmp_path / "model",
        save_preds=True,
        training=TrainingOptions(npz=True),
    )


@pytest.mark.flag("npz", "save_preds")
@pytest.mark.parametrize("regions", [False, True])
def test_a_scan_keeps_probabilities_and_mask_on_its_own_grid(
    make_plan: Plans, options: RunOptions, *, regions: bool
) -> None:
    checkpoint = save_model(options.results, make_plan(**REGIONS if regions else {}), seed=1)
    folder = predict_scans(options)
    mask = read_label_volume(folder / "scan.nii.gz").voxels
    kept = probabilities_of(folder / "scan.npz")
    assert (kept.dtype, kept.shape) == ("float16", (2 if regions else 3, 5, 12, 14))
    expected = alone(options, checkpoint).label_probs  # (C, X, Y, Z)
    np.testing.assert_allclose(kept.transpose(0, 3, 2, 1), expected, atol=HALF)
    if regions:
        assert (kept[..., :3] == 0).all()  # cropped away: in no region
        assert (painted_regions(kept, (1, 2)) == mask.T).mean() > 0.99  # but for what rounds to one half
    else:
        assert (kept[0, ..., :3] == 1).all()
        np.testing.assert_allclose(kept.astype(float).sum(axis=0), 1, atol=2 * HALF)
        assert (kept.argmax(axis=0) == mask.T).mean() > 0.99  # but for ties
    np.testing.assert_array_equal(read_array(folder / "npy" / "scan.npy"), mask.T)


@pytest.mark.flag("npz")
def test_models_of_different_grids_keep_their_mean(make_plan: Plans, options: RunOptions) -> None:
    paths = [
        save_model(options.results / name, make_plan(spacing_mm=spacing), seed)
        for seed, (name, spacing) in enumerate([("a", (2.0, 1.0, 1.0)), ("b", (3.0, 1.4, 1.2))])
    ]
    folder = predict_scans(replace(options, members=tuple(paths)))
    mean = np.mean([alone(options, path).label_probs for path in paths], axis=0)
    np.testing.assert_allclose(
        probabilities_of(folder / "scan.npz").transpose(0, 3, 2, 1), mean, atol=2 * HALF
    )


@pytest.mark.parametrize("regions", [False, True])
def test_the_mean_of_two_folders_is_that_of_their_models(
    make_plan: Plans, options: RunOptions, *, regions: bool
) -> None:
    plan = make_plan(**REGIONS if regions else {})
    paths = [save_model(options.results / name, plan, seed) for seed, name in enumerate("ab")]
    folders = [options.results / f"of_{path.parent.parent.name}" for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        predict_scans(replace(options, ckpt_path=path, output=folder))
    together = predict_scans(replace(options, members=tuple(paths)))
    mean = options.results / "mean"
    run(EnsembleOptions(preds=tuple(folders), output=mean))  # run.json tells of regions
    masks = [read_label_volume(folder / "scan.nii.gz").voxels for folder in (together, mean)]
    assert (masks[0] == masks[1]).mean() > 0.99  # but for ties in half precision
    told = [read_json(folder / "scan_classification.json")["probs"] for folder in (together, mean)]
    np.testing.assert_allclose(told[0], told[1], atol=1e-5)


def test_without_the_options_there_are_no_arrays(make_plan: Plans, options: RunOptions) -> None:
    save_model(options.results, make_plan(), seed=1)
    folder = predict_scans(replace(options, save_preds=False, training=TrainingOptions()))
    assert sorted(path.name for path in folder.rglob("*") if "np" in path.suffix) == []
    assert read_json(folder / "run.json")["cases"] == 1


def test_classes_alone_have_no_arrays_and_that_is_said_before_anything_is_read(options: RunOptions) -> None:
    with pytest.raises(UserError, match=r"--npz, --save_preds: --predictor classification predicts classes"):
        predict_scans(replace(options, predictor="classification"))


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    """As where a process ends between two channels."""

    class Interrupted(Exception):  # noqa: N818 - stands for any end
        pass

    def channels() -> Iterator[np.ndarray]:
        yield np.full((4, 3, 2), 0.5, np.float32)
        raise Interrupted

    with pytest.raises(Interrupted):
        write_probabilities(tmp_path / "case.npz", channels(), (2, 4, 3, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_case_are_those_that_are_asked_for(tmp_path: Path) -> None:
    assert ArrayFiles().paths(tmp_path, "a") == ()
    both = ArrayFiles(probabilities=True, masks=True)
    assert both.paths(tmp_path, "a") == (tmp_path / "a.npz", tmp_path / "npy" / "a.npy")
