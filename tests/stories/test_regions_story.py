"""Overlapping regions, an ignore label, BraTS: from a raw dataset to the report, on phantoms."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_preprocessing.phantom import PhantomOptions, write_phantom
from data_preprocessing.volume_io import read_label_volume, write_volume
from nnunet.training.checkpoint import load_model
from scripts import evaluate, inference, preprocess, train
from scripts.model_run import find_checkpoint
from scripts.run_options import RunOptions
from tests.stories.conftest import TASK, Phantom, shrink_plan
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.options import parse
from utils.prepared_folder import read_plan
from utils.run_log import read_log
from utils.storage import read_array, read_json, write_json

pytestmark = pytest.mark.story

Labels = dict[str, Any]
REGIONS: Labels = {"background": 0, "whole": [1, 2], "lesion": [2]}
IGNORED = 3


def change_masks(raw: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write every mask of the dataset anew; values are rounded first."""
    for image in raw.glob("*/*/*_0000.nii.gz"):
        path = image.with_name(image.name.replace("_0000", ""))
        if path.is_file():
            volume = read_label_volume(path)
            write_volume(
                path,
                change(volume.voxels.astype(np.uint8)),
                affine=volume.affine,
                qform_code=1,
                sform_code=1,
                spacing_mm=volume.spacing_mm,
            )


def prepare(
    root: Path, description: Labels, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> Phantom:
    """A phantom of three training and three validation cases with another description and other masks."""
    numbers = PhantomOptions(size="tiny", num_train=3, num_validation=3, num_test=1, n_jobs=1)
    raw = write_phantom(root / "raw", numbers)
    write_json(raw / "dataset.json", read_json(raw / "dataset.json") | description)
    if change is not None:
        change_masks(raw, change)
    words = ["--data", str(raw.parent), "--results", str(root / "prepared"), "--task", TASK, "--n_jobs", "1"]
    options = parse(preprocess.PreprocessOptions, words, program="preprocess.py", description="")
    shrink_plan(preprocess.run(options), dim=3)
    preprocess.run(options)
    return Phantom(raw=raw, prepared=root / "prepared")


def options_of(phantom: Phantom, results: Path, *flags: str) -> RunOptions:
    words = ["--data", str(phantom.prepared), "--results", str(results), "--task", TASK, "--device", "cpu"]
    words += ["--epochs", "2", "--steps_per_epoch", "2", "--num_workers", "1", "--overlap", "0"]
    return parse(RunOptions, [*words, *flags], program="main.py", description="")


def plan_of(phantom: Phantom) -> Plan:
    return read_plan(phantom.prepared / f"{TASK}_3d")


def epochs_of(results: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_log(results / "logs.json") if line["type"] == "LOG"]
    return [line["data"] for line in lines if len(line["step"]) == 1]


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_volume(path).voxels for path in sorted(folder.glob("*.nii.gz"))}


def structures_of(results: Path) -> set[str]:
    return set(read_json(results / "final_metrics.json")["structures"])


# --- regions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """Whole pancreas and lesion, which overlap."""
    return prepare(tmp_path_factory.mktemp("regions"), {"labels": REGIONS, "regions_class_order": [1, 2]})


@pytest.fixture(scope="module")
def trained_on_regions(regions: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("trained_on_regions")
    train.run(options_of(regions, results, "--npz", "--learning_rate", "0.01"))
    return results


def test_the_plan_carries_names_and_order_of_the_regions(regions: Phantom) -> None:
    plan = plan_of(regions)
    assert (plan.regions, plan.region_names) == (((1, 2), (2,)), ("whole", "lesion"))
    assert (plan.regions_class_order, plan.num_labels) == ((1, 2), 3)


def test_every_region_is_scored_in_every_epoch_and_at_the_end(trained_on_regions: Path) -> None:
    for epoch in epochs_of(trained_on_regions):
        assert 0 <= epoch["val/dsc_1"] <= 1
        assert {"val/dsc_2", "val/loss", "val/macro_f1"} <= set(epoch)
        assert np.isfinite([epoch["train/loss"], epoch["val/loss"], epoch["val/score"]]).all()
    assert structures_of(trained_on_regions) == {"whole", "lesion", "whole organ"}
    assert "whole" in (trained_on_regions / "report.html").read_text(encoding="utf-8")


def test_probabilities_of_regions_do_not_share_one(trained_on_regions: Path) -> None:
    files = sorted((trained_on_regions / "validation" / "probabilities").glob("*.npy"))
    probs = [read_array(path).astype(float) for path in files]
    assert all(array.shape[0] == 2 for array in probs)
    assert not any(np.allclose(array.sum(axis=0), 1, atol=0.01) for array in probs)


def test_a_checkpoint_remembers_its_regions(trained_on_regions: Path) -> None:
    model = load_model(find_checkpoint(trained_on_regions), torch.device("cpu"))
    assert model.plan.region_names == ("whole", "lesion")
    assert model.network(torch.zeros(1, 1, *model.plan.patch)).label_logits[0].shape[1] == 2


def test_scans_get_the_masks_of_prepared_cases(
    regions: Phantom, trained_on_regions: Path, tmp_path: Path
) -> None:
    scans = ["--input", str(regions.raw), "--output", str(tmp_path)]
    inference.run(options_of(regions, trained_on_regions, "--exec_mode", "predict", *scans))
    written, validated = masks_of(tmp_path), masks_of(trained_on_regions / "validation")
    assert written.keys() == validated.keys()
    for name, mask in written.items():
        assert set(np.unique(mask)) <= {0, 1, 2}
        # Prepared cases are padded to the patch, so their windows lie elsewhere.
        assert (mask == validated[name]).mean() > 0.99
    header = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("volume_ml_whole,volume_ml_lesion")


def score(phantom: Phantom, predictions: Path, results: Path) -> dict[str, Any]:
    """The means of evaluate.py against the phantom's validation masks."""
    references = results / "references"
    references.mkdir()
    for path in phantom.raw.glob("validation/*/*.nii.gz"):
        if not path.name.endswith("_0000.nii.gz"):
            (references / path.name).symlink_to(path)
    words = ["--preds", str(predictions), "--results", str(results), "--lbls", str(references)]
    words += ["--dataset", str(phantom.raw), "--n_jobs", "1"]
    evaluate.run(parse(evaluate.EvaluateOptions, words, program="evaluate.py", description=""))
    return read_json(results / "summary.json")["mean"]


def test_evaluation_scores_the_masks_as_the_training_did(
    regions: Phantom, trained_on_regions: Path, tmp_path: Path
) -> None:
    validation = trained_on_regions / "validation"
    means = score(regions, validation, tmp_path)
    assert set(means) == {"(1, 2)", "2"}
    assert means == read_json(validation / "summary.json")["mean"]
    assert ",whole," in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


def test_arrays_of_region_probabilities_are_scored_as_the_masks_they_write(
    regions: Phantom, tmp_path: Path
) -> None:
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for image in regions.raw.glob("validation/*/*_0000.nii.gz"):
        name = image.name.replace("_0000.nii.gz", "")
        mask = np.rint(read_label_volume(image.with_name(f"{name}.nii.gz")).voxels).T
        np.save(arrays / f"{name}.npy", np.stack([mask > 0, mask == 2]).astype(np.float32))
    assert [mean["Dice"] for mean in score(regions, arrays, tmp_path).values()] == [1, 1]


def test_other_regions_of_the_same_masks_are_planned_anew(tmp_path: Path) -> None:
    phantom = prepare(tmp_path, {"labels": REGIONS, "regions_class_order": [1, 2]})
    assert plan_of(phantom).regions == ((1, 2), (2,))
    description = read_json(phantom.raw / "dataset.json")
    description["labels"] = {"background": 0, "whole": [1], "lesion": [2]}  # the same names
    write_json(phantom.raw / "dataset.json", description)
    words = ["--data", str(phantom.raw.parent), "--results", str(phantom.prepared), "--task", TASK]
    words += ["--n_jobs", "1"]
    preprocess.run(parse(preprocess.PreprocessOptions, words, program="preprocess.py", description=""))
    assert plan_of(phantom).regions == ((1,), (2,))


# --- ignore label ------------------------------------------------------------------------------------------


def without_upper_half(mask: np.ndarray) -> np.ndarray:
    """Nobody looked at the upper half."""
    mask[:, :, mask.shape[2] // 2 :] = IGNORED
    return mask


@pytest.fixture(scope="module")
def half_annotated(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    labels = {"background": 0, "pancreas": 1, "lesion": 2, "ignore": IGNORED}
    return prepare(tmp_path_factory.mktemp("ignored"), {"labels": labels}, without_upper_half)


def test_an_ignore_label_is_trained_around_and_scored_around(half_annotated: Phantom, tmp_path: Path) -> None:
    plan = plan_of(half_annotated)
    assert (plan.ignore_label, plan.num_labels, plan.num_logits) == (IGNORED, 3, 3)
    train.run(options_of(half_annotated, tmp_path))
    for epoch in epochs_of(tmp_path):
        assert np.isfinite([epoch["train/loss"], epoch["val/loss"]]).all()
        assert "val/dsc_3" not in epoch
    assert structures_of(tmp_path) == {"pancreas", "lesion", "whole organ"}
    masks = masks_of(tmp_path / "validation")
    assert all(set(np.unique(mask)) <= {0, 1, 2} for mask in masks.values())
    rows = read_json(tmp_path / "validation" / "summary.json")["metric_per_case"]
    for row, mask in zip(rows, masks.values(), strict=True):
        counts = row["metrics"]["1"]
        annotated = mask[:, :, : mask.shape[2] // 2].size
        assert sum(counts[name] for name in ("TP", "FP", "FN", "TN")) == annotated


def test_regions_and_an_ignore_label_train_together(tmp_path: Path) -> None:
    labels = {**REGIONS, "ignore": IGNORED}
    description = {"labels": labels, "regions_class_order": [1, 2]}
    phantom = prepare(tmp_path / "data", description, without_upper_half)
    train.run(options_of(phantom, tmp_path / "results", "--max_epochs", "1", "--focal"))
    assert structures_of(tmp_path / "results") == {"whole", "lesion", "whole organ"}
    (epoch,) = epochs_of(tmp_path / "results")
    assert np.isfinite([epoch["train/loss"], epoch["val/loss"]]).all()


# --- the flags ---------------------------------------------------------------------------------------------


def with_three_labels(mask: np.ndarray) -> np.ndarray:
    """The half of the lesion at higher x becomes label 3."""
    lesion = np.argwhere(mask == 2)
    middle = int(np.median(lesion[:, 0])) if len(lesion) else 0
    enhancing = mask == 2
    enhancing[: middle + 1] = False
    mask[enhancing] = 3
    return mask


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    labels = {"background": 0, "necrotic core": 1, "edema": 2, "enhancing tumour": 3}
    return prepare(tmp_path_factory.mktemp("tumours"), {"labels": labels}, with_three_labels)


@pytest.mark.flag("brats")
def test_brats_trains_predicts_and_scores_three_regions(tumours: Phantom, tmp_path: Path) -> None:
    assert plan_of(tumours).regions == ()
    train.run(options_of(tumours, tmp_path, "--brats", "--focal"))
    names = {"whole tumour", "tumour core", "enhancing tumour"}
    assert structures_of(tmp_path) == {*names, "whole organ"}
    assert {"val/dsc_1", "val/dsc_2", "val/dsc_3"} <= set(epochs_of(tmp_path)[-1])
    # The checkpoint knows: neither prediction nor scoring needs the flag.
    folder = inference.run(options_of(tumours, tmp_path, "--exec_mode", "predict"))
    header = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("volume_ml_whole tumour,volume_ml_tumour core,volume_ml_enhancing tumour")
    before = read_json(tmp_path / "final_metrics.json")["dsc_mean"]
    inference.evaluate(options_of(tumours, tmp_path, "--exec_mode", "evaluate"))
    assert read_json(tmp_path / "final_metrics.json")["dsc_mean"] == before


def test_brats_refuses_a_dataset_of_two_labels(phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--brats needs the labels 1"):
        train.run(options_of(phantom, tmp_path, "--brats"))


def last_epoch(phantom: Phantom, results: Path, *flags: str) -> dict[str, Any]:
    train.run(options_of(phantom, results, "--no_save_ckpt", *flags))
    return epochs_of(results)[-1]


@pytest.mark.flag("focal")
def test_focal_changes_the_loss_of_the_segmentation(phantom: Phantom, tmp_path: Path) -> None:
    plain = last_epoch(phantom, tmp_path / "plain", "--max_epochs", "1")
    focal = last_epoch(phantom, tmp_path / "focal", "--max_epochs", "1", "--focal")
    # Before the first step both networks are equal, and what is easy weighs less.
    assert focal["train/loss_segmentation"] < plain["train/loss_segmentation"]


def others(metrics: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    skipped = ("speed/", "epoch_s", "train_s", *names)
    return {name: value for name, value in metrics.items() if not name.startswith(skipped)}


@pytest.mark.flag("invert_resampled_y")
def test_validation_on_the_original_grid_has_a_number_of_its_own_that_chooses_the_epoch(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    phantom = coarse_phantom(tmp_path_factory.mktemp("coarse"))
    flags = ("--learning_rate", "0.01", "--steps_per_epoch", "8")
    train.run(options_of(phantom, tmp_path / "original", "--invert_resampled_y", "--max_epochs", "1", *flags))
    (epoch,) = epochs_of(tmp_path / "original")
    plain = last_epoch(phantom, tmp_path / "plain", "--max_epochs", "1", *flags)
    assert others(epoch, ["val/dsc_original", "val/score"]) == others(plain, ["val/score"])
    assert "val/dsc_original" not in plain
    assert plain["val/score"] == plain["val/dsc"]
    assert epoch["val/score"] == epoch["val/dsc_original"]
    assert epoch["val/dsc_original"] != epoch["val/dsc"]
    # One epoch: its weights are those of the final validation, which scores the same grid.
    final = read_json(tmp_path / "original" / "final_metrics.json")
    assert epoch["val/dsc_original"] == pytest.approx(final["dsc_mean"])


def coarse_phantom(root: Path) -> Phantom:
    """Prepared at twice the spacing, so that the grids differ."""
    numbers = PhantomOptions(size="tiny", num_train=3, num_validation=3, num_test=1, n_jobs=1)
    raw = write_phantom(root / "raw", numbers)
    words = ["--data", str(raw.parent), "--results", str(root / "prepared"), "--task", TASK, "--n_jobs", "1"]
    words += ["--overwrite_target_spacing", "4", "1.5", "1.5"]
    options = parse(preprocess.PreprocessOptions, words, program="preprocess.py", description="")
    shrink_plan(preprocess.run(options), dim=3)
    preprocess.run(options)
    return Phantom(raw=raw, prepared=root / "prepared")
