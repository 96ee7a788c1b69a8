"""Prediction and evaluation with a trained checkpoint, from the command line to the files."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
import torch

from data_preprocessing.volume_io import write_volume
from nnunet.training.checkpoint import load_model
from nnunet.training.trainer import Machine
from scripts import inference, model_run, preprocess
from scripts.run_options import RunOptions
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.storage import read_array, read_json, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
TASK = "500"
Options = Callable[..., RunOptions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scans:
    """Two scans of the phantom in a folder of their own, the first one rotated and its voxels anisotropic."""

    folder: Path
    first: Path
    second: Path


@pytest.fixture
def scans(phantom: "Phantom", tmp_path: Path) -> Scans:
    folder = tmp_path / "scans"
    sources = sorted((phantom.raw / "test").glob("*_0000.nii.gz"))[:2]
    image = load(sources[0])
    rotated = np.array([[0, -1.5, 0, 10], [0.9, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]], float)
    write_volume(
        folder / "turned_0000.nii.gz",
        np.asarray(image.dataobj, np.float32),
        affine=rotated,
        qform_code=1,
        sform_code=2,
        spacing_mm=(0.9, 1.5, 2.5),
    )
    second = folder / sources[1].name
    second.write_bytes(sources[1].read_bytes())
    return Scans(folder=folder, first=folder / "turned_0000.nii.gz", second=second)


def load(path: Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return image


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(load(path).dataobj)


def command(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "main.py"), "--device", "cpu", *map(str, flags)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.flag("input", "output")
def test_a_scan_is_predicted_on_its_own_grid(trained: Path, scans: Scans, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command("--exec_mode", "predict", "--results", trained, "-i", scans.first, "-o", out)
    assert result.returncode == 0, result.stderr
    mask, scan = load(out / "turned.nii.gz"), load(scans.first)
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == scan.shape
    np.testing.assert_allclose(np.asarray(mask.affine), np.asarray(scan.affine), atol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), scan.header.get_zooms(), atol=1e-5)
    for form in ("qform_code", "sform_code"):
        assert mask.header[form] == scan.header[form]
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_the_table_has_class_probabilities_and_volumes(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    inference.run(run_options(trained, "-i", str(scans.folder), "-o", str(tmp_path / "out")))
    rows = table(tmp_path / "out" / "predictions.csv")
    assert [row["case"] for row in rows] == sorted(
        name.name.removesuffix("_0000.nii.gz") for name in (scans.first, scans.second)
    )
    for row in rows:
        probs = [float(row[f"prob_{name}"]) for name in ("0", "1", "2")]
        assert sum(probs) == pytest.approx(1, abs=1e-5)
        assert row["predicted_class"] == str(int(np.argmax(probs)))
    mask = voxels_of(tmp_path / "out" / "turned.nii.gz")
    voxels = int((mask == 2).sum())
    turned = next(row for row in rows if row["case"] == "turned")
    assert float(turned["volume_ml_lesion"]) == pytest.approx(voxels * 0.9 * 1.5 * 2.5 / 1000, abs=1e-3)


def test_the_same_scan_stored_in_another_orientation_has_the_same_mask_in_the_world(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    image = load(scans.second)
    flipped = image.as_reoriented([[1, -1], [0, 1], [2, -1]])
    nibabel.save(flipped, scans.folder / "flipped.nii.gz")
    inference.run(run_options(trained, "-i", str(scans.folder), "-o", str(tmp_path / "out")))
    name = scans.second.name.replace("_0000", "")
    original, turned = (
        nibabel.as_closest_canonical(load(tmp_path / "out" / file)) for file in (name, "flipped.nii.gz")
    )
    np.testing.assert_allclose(np.asarray(original.affine), np.asarray(turned.affine), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(original.dataobj), np.asarray(turned.dataobj))


def test_a_corrupt_scan_is_named_and_the_others_are_predicted(
    trained: Path, scans: Scans, tmp_path: Path
) -> None:
    broken = scans.folder / "broken_0000.nii.gz"
    broken.write_bytes(scans.second.read_bytes()[:500])
    out = tmp_path / "out"
    result = command("--exec_mode", "predict", "--results", trained, "-i", scans.folder, "-o", out)
    assert result.returncode == 3
    assert "broken" in result.stderr
    assert "Traceback" not in result.stderr
    masks = {path.name for path in out.glob("*.nii.gz")}
    assert masks == {"turned.nii.gz", scans.second.name.replace("_0000", "")}
    assert len(table(out / "predictions.csv")) == 2
    assert len(read_json(out / "run.json")["failures"]) == 1


def test_a_raw_dataset_is_predicted_on_the_cases_held_out(
    trained: Path,
    phantom: "Phantom",
    run_options: Options,
    tmp_path: Path,
) -> None:
    inference.run(run_options(trained, "-i", str(phantom.raw), "-o", str(tmp_path)))
    held_out = read_json(phantom.raw / "splits_final.json")[0]["val"]
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == [f"{name}.nii.gz" for name in held_out]


def test_raw_and_prepared_cases_get_the_same_mask(
    trained: Path,
    phantom: "Phantom",
    run_options: Options,
    tmp_path: Path,
) -> None:
    inference.run(run_options(trained, "-i", str(phantom.raw), "-o", str(tmp_path)))
    for path in tmp_path.glob("*.nii.gz"):
        raw, prepared = (voxels_of(folder / path.name) for folder in (tmp_path, trained / "validation"))
        # The prepared image is stored in half precision.
        assert (raw == prepared).mean() > 0.99


@pytest.mark.flag("tta", "overlap")
def test_mirroring_and_blending_change_the_answer(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    variants = {"plain": (), "tta": ("--tta",), "overlap": ("--overlap", "0.75"), "amp": ("--amp",)}
    answers = set()
    for name, flags in variants.items():
        inference.run(run_options(trained, "-i", str(scans.second), "-o", str(tmp_path / name), *flags))
        answers.add((tmp_path / name / "predictions.csv").read_text(encoding="utf-8"))
    assert len(answers) == len(variants)


@pytest.mark.flag("ckpt_path")
def test_the_checkpoint_alone_is_enough(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    """No plan, no dataset and no results folder but the one file."""
    alone = tmp_path / "model.ckpt"
    alone.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    empty = tmp_path / "empty"
    flags = ["--ckpt_path", str(alone), "--data", str(empty), "-i", str(scans.first)]
    folder = inference.run(run_options(empty, *flags))
    assert folder == empty / "predictions"
    assert (folder / "turned.nii.gz").is_file()


@pytest.mark.flag("results")
def test_an_empty_results_folder_says_to_train_first(
    scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="has no checkpoint. Train first"):
        inference.run(run_options(tmp_path, "-i", str(scans.first)))


@pytest.mark.flag("save_preds", "exec_mode")
def test_prepared_cases_are_scored_and_kept_as_arrays(
    trained: Path, run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = inference.run(run_options(trained, "-o", str(tmp_path), "--save_preds"))
    assert folder == tmp_path
    assert "pancreas" in capsys.readouterr().out
    arrays = sorted((folder / "npy").glob("*.npy"))
    assert len(arrays) == len(list(folder.glob("*.nii.gz"))) == 3
    mask = voxels_of(folder / f"{arrays[0].stem}.nii.gz")
    np.testing.assert_array_equal(read_array(arrays[0]), mask.transpose())
    assert read_json(folder / "summary.json")["foreground_mean"]["Dice"] is not None


@pytest.mark.flag("data")
def test_the_prepared_test_cases_come_before_the_held_out_ones(
    trained: Path,
    phantom: "Phantom",
    run_options: Options,
    tmp_path: Path,
) -> None:
    prepared = tmp_path / "prepared"  # a copy: other tests expect no test/ in the shared one
    shutil.copytree(phantom.prepared / f"{TASK}_3d", prepared / f"{TASK}_3d")
    words = ["--data", str(phantom.raw.parent), "--results", str(prepared), "--task", TASK]
    words += ["--exec_mode", "test", "--n_jobs", "1"]
    test = preprocess.run(parse(preprocess.PreprocessOptions, words, program="preprocess.py", description=""))
    folder = inference.run(run_options(trained, "--data", str(prepared), "-o", str(tmp_path / "all")))
    rows = table(folder / "predictions.csv")
    assert [row["case"] for row in rows] == sorted(path.name[:-6] for path in test.glob("*_x.npy"))
    assert not (folder / "summary.json").exists()
    given = inference.run(run_options(trained, "--data", str(test), "-o", str(tmp_path / "given")))
    assert table(given / "predictions.csv") == rows


def test_a_raw_dataset_is_predicted_by_its_held_out_cases(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    inference.run(run_options(trained, "-i", str(phantom.raw), "-o", str(tmp_path)))
    held_out = read_json(phantom.raw / "splits_final.json")[0]["val"]
    assert [row["case"] for row in table(tmp_path / "predictions.csv")] == sorted(held_out)


def test_cases_that_trained_the_model_are_not_scored(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    prepared = tmp_path / f"{TASK}_3d"
    shutil.copytree(phantom.prepared / f"{TASK}_3d", prepared)
    fold = read_json(prepared / "splits_final.json")[0]
    write_json(prepared / "splits_final.json", [{"train": fold["val"], "val": fold["train"]}])
    best = next((trained / "checkpoints").glob("epoch=*.ckpt"))
    options = run_options(tmp_path / "out", "--data", str(tmp_path), "--ckpt_path", str(best))
    with pytest.raises(DatasetError, match="9 of these 9 cases trained the model"):
        inference.evaluate(options)


def test_volumes_that_were_prepared_otherwise_are_refused(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    prepared = tmp_path / f"{TASK}_3d"
    shutil.copytree(phantom.prepared / f"{TASK}_3d", prepared)
    plan = read_json(prepared / "plan.json")
    write_json(prepared / "plan.json", plan | {"spacing_mm": [9.0, 9.0, 9.0]})
    best = next((trained / "checkpoints").glob("epoch=*.ckpt"))
    options = run_options(tmp_path / "out", "--data", str(tmp_path), "--ckpt_path", str(best))
    with pytest.raises(DatasetError, match="prepared with another spacing_mm"):
        inference.evaluate(options)


@pytest.mark.flag("exec_mode")
def test_evaluation_scores_the_held_out_cases_again(
    trained: Path, run_options: Options, tmp_path: Path
) -> None:
    best = next((trained / "checkpoints").glob("epoch=*.ckpt"))
    report = inference.evaluate(run_options(tmp_path, "--ckpt_path", str(best)))
    assert report == tmp_path / "report.html"
    again, before = (read_json(folder / "final_metrics.json") for folder in (tmp_path, trained))
    assert again["dsc_mean"] == pytest.approx(before["dsc_mean"])
    assert again["structures"] == before["structures"]


def test_two_dimensional_training_predicts_volumes(
    run_options: Options, scans: Scans, tmp_path: Path
) -> None:
    from scripts import train

    results = tmp_path / "flat"
    train.run(run_options(results, "--dim", "2", "--max_epochs", "1"))
    inference.run(run_options(results, "-i", str(scans.first), "-o", str(tmp_path / "out")))
    mask = load(tmp_path / "out" / "turned.nii.gz")
    assert mask.shape == load(scans.first).shape


@pytest.mark.parametrize(("device", "searches"), [("cuda", True), ("cpu", False)])
def test_kernels_are_searched_for_on_a_gpu_as_in_training(
    trained: Path, run_options: Options, monkeypatch: pytest.MonkeyPatch, device: str, *, searches: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not searches)
    monkeypatch.setattr(model_run, "choose_machine", lambda *_: Machine(device=device))
    monkeypatch.setattr(model_run, "load_model", lambda path, _: load_model(path, torch.device("cpu")))
    model_run.open_model(run_options(trained))
    assert torch.backends.cudnn.benchmark is searches


def test_help_imports_neither_torch_nor_dali(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "--exec_mode" in result.stdout
    loaded = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not {"torch", "nvidia.dali", "nibabel", "pytorch_lightning"} & loaded


@pytest.mark.flag("shard")
def test_parts_of_the_scans_are_predicted_into_one_folder(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    inference.run(run_options(trained, "-i", str(scans.folder), "-o", str(whole)))
    written = []
    for part in ("2/3", "1/3", "3/3"):  # the last has no scan
        inference.run(run_options(trained, "-i", str(scans.folder), "-o", str(out), "--shard", part))
        written.append({path.name: path.stat().st_mtime_ns for path in out.iterdir()})
    assert all(written[-1][name] == time_ns for before in written for name, time_ns in before.items())
    tables = [table(out / f"predictions_{number}of3.csv") for number in (1, 2, 3)]
    assert [len(rows) for rows in tables] == [1, 1, 0]
    assert [row for rows in tables for row in rows] == table(whole / "predictions.csv")
    for path in whole.glob("*.nii.gz"):
        np.testing.assert_array_equal(voxels_of(out / path.name), voxels_of(path))
    assert not (out / "predictions.csv").exists()
    assert not (out / "run.json").exists()


def test_a_part_of_prepared_cases_is_not_scored_as_the_whole(
    trained: Path, run_options: Options, tmp_path: Path
) -> None:
    names = []
    for part in ("1/2", "2/2"):
        inference.run(run_options(trained, "-o", str(tmp_path), "--shard", part))
        names += [row["case"] for row in table(tmp_path / f"predictions_{part.replace('/', 'of')}.csv")]
    assert sorted(names) == sorted(path.name.removesuffix(".nii.gz") for path in tmp_path.glob("*.nii.gz"))
    assert len(names) == len(set(names)) > 1
    assert not (tmp_path / "summary.json").exists()


def test_a_wrong_part_stops_prediction_before_anything_else(run_options: Options, tmp_path: Path) -> None:
    for flags in (["-i", str(tmp_path)], []):
        with pytest.raises(UserError, match="as 1/4, got '5/4'"):
            inference.run(run_options(tmp_path, *flags, "--shard", "5/4"))
    with pytest.raises(UserError, match="--exec_mode predict"):
        inference.evaluate(run_options(tmp_path, "--shard", "1/4"))


@pytest.mark.flag("test_batches")
def test_so_many_cases_are_predicted_at_most(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path
) -> None:
    few = ["--test_batches", "1"]
    inference.run(run_options(trained, "-o", str(tmp_path / "prepared"), *few))
    inference.run(run_options(trained, "-i", str(scans.first.parent), "-o", str(tmp_path / "raw"), *few))
    assert [len(table(tmp_path / name / "predictions.csv")) for name in ("prepared", "raw")] == [1, 1]


def test_prepared_cases_that_trained_the_model_are_refused_too(
    trained: Path, phantom: "Phantom", run_options: Options, tmp_path: Path
) -> None:
    prepared = tmp_path / f"{TASK}_3d"
    shutil.copytree(phantom.prepared / f"{TASK}_3d", prepared)
    fold = read_json(prepared / "splits_final.json")[0]
    write_json(prepared / "splits_final.json", [{"train": fold["val"], "val": fold["train"]}])
    with pytest.raises(DatasetError, match="9 of these 9 cases trained the model"):
        inference.run(run_options(trained, "--data", str(tmp_path), "-o", str(tmp_path / "out")))


def test_prediction_on_several_gpus_says_that_it_takes_one_process(
    trained: Path, scans: Scans, run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inference.run(run_options(trained, "-i", str(scans.second), "-o", str(tmp_path), "--gpus", "2"))
    assert "runs in one process" in capsys.readouterr().err


def test_the_script_that_predicts_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["inference.py", "--exec_mode", "train"])
    with pytest.raises(UserError, match=r"inference\.py predicts"):
        inference.main()
