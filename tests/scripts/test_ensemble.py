"""Predictions of several networks whose weights were drawn, not trained, on a made scan."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preprocessing.cases import load_case
from data_preprocessing.prepare import prepare_case
from data_preprocessing.scans import read_scans
from data_preprocessing.volume_io import read_label_volume, write_volume
from nnunet.evaluation.postprocessing import Postprocessing, Step, keep_largest
from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import MODEL_KEY, NETWORK_PREFIX, model_card
from scripts.ensemble import Ensemble, on_the_scan, open_ensemble
from scripts.model_run import open_model, planned_spacing_mm
from scripts.predict_scans import predict_scans
from scripts.run_options import RunOptions
from utils.contracts import Plan, Prediction
from utils.errors import DatasetError, UserError
from utils.storage import read_json, write_json

Plans = Callable[..., Plan]
RARE = 4.0  # of the lesion's logit
LESION = Step(name="lesion", labels=(2,))


def save_model(
    results: Path, plan: Plan, seed: int, branch: str = "simple", cases: Sequence[str] = ()
) -> Path:
    """A checkpoint of drawn weights in a results folder; the lesion is rare, so that it has many parts."""
    torch.manual_seed(seed)
    architecture = Architecture(branch=branch)
    network = MultiTaskUNet(plan, architecture)
    state = {f"{NETWORK_PREFIX}{name}": value * 3 for name, value in network.state_dict().items()}
    for name, value in state.items():
        if "decoder" in name and value.shape == (plan.num_labels,):
            value[-1] -= RARE
    path = results / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, MODEL_KEY: model_card(plan, architecture, cases)}, path)
    (results / "final_metrics.json").touch()
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan_0000.nii.gz"
    voxels = np.random.default_rng(0).normal(100, 20, (22, 20, 7)).astype(np.float32)
    voxels[:3] = 0  # cropped away before prediction
    affine = np.diag([1.1, 1.0, 2.5, 1.0])
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=1, spacing_mm=(1.1, 1.0, 2.5))
    return path


@pytest.fixture
def options(scan: Path, tmp_path: Path) -> Callable[..., RunOptions]:
    def make(output: str, **changes: object) -> RunOptions:
        base = RunOptions(exec_mode="predict", device="cpu", input=scan, output=tmp_path / output)
        return replace(base, **changes)  # pyright: ignore[reportArgumentType]

    return make


def mask_of(folder: Path) -> np.ndarray:
    return read_label_volume(folder / "scan.nii.gz").voxels


def row_of(folder: Path) -> dict[str, str]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    return row


def alone(options: RunOptions, checkpoint: Path) -> Prediction:
    """What one model says on the scan's grid, without any of the ensemble's code but the last step."""
    run = open_model(options, checkpoint)
    assert options.input is not None
    (raw,) = read_scans(options.input, num_channels=1)
    arrays = prepare_case(load_case(raw), run.plan, mode="test")
    prediction = run.predict(arrays.image, "scan", planned_spacing_mm(arrays.footprint))
    return on_the_scan(prediction, arrays.footprint, run.plan)


@pytest.mark.flag("members", "folds")
@pytest.mark.parametrize("spacing_mm", [(2.0, 1.0, 1.0), (3.0, 1.4, 1.2)])
def test_models_answer_by_the_mean_of_their_probabilities(
    make_plan: Plans,
    options: Callable[..., RunOptions],
    tmp_path: Path,
    spacing_mm: tuple[float, float, float],
) -> None:
    """Prepared alike or not: the second plan has its own grid."""
    first = save_model(tmp_path / "a", make_plan(), 1)
    folds = [
        save_model(tmp_path / "cv" / f"fold_{i}", make_plan(spacing_mm=spacing_mm), i + 2) for i in range(2)
    ]
    together = options("out", members=(first, tmp_path / "cv"))
    assert len(open_ensemble(together).groups) == (1 if spacing_mm == (2.0, 1.0, 1.0) else 2)
    folder = predict_scans(together)
    single = [alone(together, path) for path in (first, *folds)]
    assert all(np.allclose(one.label_probs.sum(axis=0), 1, atol=1e-4) for one in single)
    assert all((one.label_probs[0, :3] == 1).all() for one in single)
    mean = mean_prediction(
        MemberAnswer(prediction=one, weight=weight)
        for one, weight in zip(single, (0.5, 0.25, 0.25), strict=True)
    )
    mask = mask_of(folder)
    assert (mask == mean.label_probs.argmax(axis=0)).mean() > 0.999  # rounding, where two labels tie
    assert all((mask != one.label_probs.argmax(axis=0)).mean() > 0.01 for one in single)
    assert mean.class_probs is not None
    assert float(row_of(folder)["prob_benign"]) == pytest.approx(float(mean.class_probs[0]), abs=1e-5)
    assert [Path(path).parents[1].name for path in read_json(folder / "run.json")["checkpoints"]] == [
        "a",
        "fold_0",
        "fold_1",
    ]
    # One of the two folds alone is another model.
    fewer = predict_scans(options("fewer", members=(tmp_path / "cv",), folds=(1,)))
    assert (mask_of(fewer) == single[2].label_probs.argmax(axis=0)).mean() > 0.999


def test_regions_are_averaged_one_by_one(
    make_plan: Plans, options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    regions = {"regions": ((1, 2), (2,)), "region_names": ("whole", "lesion"), "regions_class_order": (1, 2)}
    paths = [
        save_model(tmp_path / str(seed), make_plan(spacing_mm=(2.0, 1.0, width), **regions), seed)
        for seed, width in ((1, 1.1), (2, 1.1), (3, 1.3))
    ]
    assert [len(group.runs) for group in open_ensemble(options("x", members=tuple(paths))).groups] == [2, 1]
    folder = predict_scans(options("out", members=tuple(paths)))
    whole, lesion = mean_prediction(
        MemberAnswer(prediction=alone(options("x"), path)) for path in paths
    ).label_probs
    expected = np.where(lesion > 0.5, 2, np.where(whole > 0.5, 1, 0))
    assert (mask_of(folder) == expected).mean() > 0.999


@pytest.mark.flag("predictor")
def test_masks_or_classes_are_written_as_asked(
    make_plan: Plans, options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    save_model(tmp_path / "both", make_plan(), 1)
    found = {
        wanted: predict_scans(options(str(wanted), results=tmp_path / "both", predictor=wanted))
        for wanted in (None, "segmentation", "classification")
    }
    names = {wanted: {path.name for path in folder.iterdir()} for wanted, folder in found.items()}
    classes = {"subtype_results.csv", "scan_classification.json"}
    assert names[None] == {"scan.nii.gz", "predictions.csv", "run.json"} | classes
    assert names["segmentation"] == names[None] - classes
    assert names["classification"] == names[None] - {"scan.nii.gz"}
    assert list(row_of(found["segmentation"])) == ["case", "volume_ml_organ", "volume_ml_lesion"]
    assert "volume_ml_lesion" not in row_of(found["classification"])
    assert row_of(found["classification"])["prob_benign"] == row_of(found[None])["prob_benign"]


def test_a_class_that_no_model_predicts_is_told(
    make_plan: Plans, options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    save_model(tmp_path / "plain", make_plan(), 1, branch="none")
    with pytest.raises(UserError, match="without a branch and predicts no class"):
        predict_scans(options("out", results=tmp_path / "plain", predictor="classification"))


def test_models_of_other_labels_are_not_averaged(
    make_plan: Plans, options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    first = save_model(tmp_path / "a", make_plan(), 1)
    other = save_model(tmp_path / "b", make_plan(label_names=("background", "liver", "lesion")), 1)
    with pytest.raises(DatasetError, match="another label_names than"):
        predict_scans(options("out", members=(first, other)))


def found_by(ensemble: Ensemble) -> Postprocessing:
    return Postprocessing(
        steps=(LESION,),
        trials=(),
        num_cases=3,
        dice_before=0.5,
        dice_after=0.6,
        networks=ensemble.networks(),
    )


@pytest.mark.flag("postprocessing")
def test_postprocessing_is_that_of_the_model_or_a_files_or_none(
    make_plan: Plans,
    options: Callable[..., RunOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "cv"
    save_model(results / "fold_0", make_plan(), 1)
    save_model(tmp_path / "other", make_plan(), 2)
    raw = mask_of(predict_scans(options("raw", results=results, postprocessing="none")))
    cleaned = keep_largest(raw, LESION)
    assert (raw != cleaned).any()
    file = results / "postprocessing.json"
    write_json(file, found_by(open_ensemble(options("raw", results=results))))

    def predicted(output: str, **changes: object) -> np.ndarray:
        return mask_of(predict_scans(options(output, **changes)))

    np.testing.assert_array_equal(predicted("auto", results=results), cleaned)
    # The fold alone is one of the models that it was found with.
    np.testing.assert_array_equal(predicted("fold", results=results / "fold_0"), cleaned)
    np.testing.assert_array_equal(predicted("none", results=results, postprocessing="none"), raw)
    assert float(row_of(tmp_path / "auto")["volume_ml_lesion"]) == pytest.approx(
        (cleaned == 2).sum() * 1.1 * 2.5 / 1000, abs=1e-3
    )
    capsys.readouterr()
    other = predicted("other_raw", results=tmp_path / "other")
    changed = predicted("other", results=tmp_path / "other", postprocessing=str(file))
    np.testing.assert_array_equal(changed, keep_largest(other, LESION))
    assert "largest component of lesion" in capsys.readouterr().err


def test_postprocessing_of_other_weights_or_of_one_member_only_is_not_applied(
    make_plan: Plans,
    options: Callable[..., RunOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = save_model(tmp_path / "a", make_plan(), 1)
    second = save_model(tmp_path / "b", make_plan(), 2)
    stale = replace(found_by(open_ensemble(options("x", results=tmp_path / "a"))), networks=("0" * 64,))
    write_json(tmp_path / "a" / "postprocessing.json", stale)
    raw = mask_of(predict_scans(options("a1", results=tmp_path / "a", postprocessing="none")))
    np.testing.assert_array_equal(mask_of(predict_scans(options("a2", results=tmp_path / "a"))), raw)
    assert "found with other weights" in capsys.readouterr().err
    predict_scans(options("pair", members=(first, second)))
    assert "do not share one postprocessing.json" in capsys.readouterr().err


def test_a_file_that_is_missing_or_of_other_labels_is_told(
    make_plan: Plans, options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    save_model(tmp_path / "a", make_plan(), 1)
    file = tmp_path / "foreign.json"
    with pytest.raises(DatasetError, match="there is no such file"):
        predict_scans(options("x", results=tmp_path / "a", postprocessing=str(file)))
    foreign = Step(name="kidney", labels=(7,))
    ensemble = open_ensemble(options("x", results=tmp_path / "a"))
    write_json(file, replace(found_by(ensemble), steps=(foreign,)))
    with pytest.raises(DatasetError, match="cleans label 7"):
        predict_scans(options("x", results=tmp_path / "a", postprocessing=str(file)))
