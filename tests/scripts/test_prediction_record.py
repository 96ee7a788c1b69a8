"""A prediction that was cut off goes on: what counts as finished, and when a folder is another model's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import write_volume
from nnunet.options import InferenceOptions, TrainingOptions
from scripts import inference, predict_scans, train
from scripts.ensemble import ScanAnswer
from scripts.model_run import PredictionRow, write_predictions_table
from scripts.prediction_record import read_rows
from scripts.previous_stage import Stages
from scripts.run_options import RunOptions
from tests.scripts.test_ensemble import save_model
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.storage import read_json

Plans = Callable[..., Plan]
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def options(make_plan: Plans, tmp_path: Path) -> RunOptions:
    """Four scans, and a model that predicts them with probabilities."""
    geometry = {"affine": np.eye(4), "qform_code": 1, "sform_code": 1, "spacing_mm": (1.0, 1.0, 1.0)}
    generator = np.random.default_rng(0)
    for name in NAMES:
        voxels = generator.normal(100, 20, (12, 10, 5)).astype(np.float32)
        write_volume(tmp_path / "scans" / f"{name}_0000.nii.gz", voxels, **geometry)
    save_model(tmp_path / "model", make_plan(), seed=1)
    return RunOptions(
        exec_mode="predict",
        device="cpu",
        input=tmp_path / "scans",
        output=tmp_path / "out",
        results=tmp_path / "model",
        training=TrainingOptions(npz=True),
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans that the network was asked about; one called `stop` in front ends the prediction there."""
    names: list[str] = []
    real = predict_scans._answer

    def answer(stages: Stages, ready: predict_scans.ReadyScan) -> ScanAnswer:
        if names[:1] == ["stop"] and len(names) == 3:
            raise KeyboardInterrupt
        names.append(ready.case_id)
        return real(stages, ready)

    monkeypatch.setattr(predict_scans, "_answer", answer)
    return names


def cut_off(options: RunOptions, asked: list[str]) -> Path:
    """Predict two of the scans and no more."""
    asked[:] = ["stop"]
    with pytest.raises(KeyboardInterrupt):
        predict_scans.predict_scans(options)
    asked.clear()
    assert options.output is not None
    return options.output


@pytest.mark.flag("continue_prediction")
def test_what_is_finished_is_skipped_and_the_result_is_that_of_a_straight_run(
    options: RunOptions, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = predict_scans.predict_scans(replace(options, output=tmp_path / "straight"))
    folder = cut_off(options, asked)
    assert not read_json(folder / "run.json")["finished"]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.n*")}
    assert sorted(path.name for path in before) == ["a.nii.gz", "a.npz", "b.nii.gz", "b.npz"]
    predict_scans.predict_scans(replace(options, continue_prediction=True))
    assert asked == ["c", "d"]
    assert f"2 of 4 scans are predicted already in {folder} and skipped: a, b." in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in straight.iterdir())
    for name in ("predictions.csv", "subtype_results.csv", *(f"{name}.nii.gz" for name in NAMES)):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
    record = read_json(folder / "run.json")
    assert (record["finished"], record["cases"], record["failures"]) == (True, 4, [])


def test_without_the_option_all_scans_are_predicted_again(options: RunOptions, asked: list[str]) -> None:
    cut_off(options, asked)
    predict_scans.predict_scans(options)
    assert asked == list(NAMES)


@pytest.mark.parametrize("missing", ["a.nii.gz", "a.npz", "npy/a.npy", "row"])
def test_a_case_that_lacks_one_of_its_files_is_predicted_again(
    options: RunOptions, asked: list[str], missing: str
) -> None:
    options = replace(options, save_preds=True)
    folder = predict_scans.predict_scans(options)
    asked.clear()
    if missing == "row":
        lines = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "predictions.csv").write_text("".join(lines[:1] + lines[2:]), encoding="utf-8")
    else:
        (folder / missing).rename(folder / f".{Path(missing).name}.x1.tmp")  # as where a write was cut off
    predict_scans.predict_scans(replace(options, continue_prediction=True))
    assert asked == ["a"]


def test_classes_alone_go_on_by_their_rows(options: RunOptions, asked: list[str]) -> None:
    only = replace(options, predictor="classification", training=TrainingOptions())
    folder = cut_off(only, asked)
    predict_scans.predict_scans(replace(only, continue_prediction=True))
    assert asked == ["c", "d"]
    assert len((folder / "subtype_results.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_parts_go_on_with_what_the_whole_has_finished(options: RunOptions, asked: list[str]) -> None:
    folder = cut_off(options, asked)
    predict_scans.predict_scans(replace(options, continue_prediction=True, shard="1/2"))
    assert asked == ["c"]
    assert (folder / "predictions_1of2.csv").read_text(encoding="utf-8").count("\n") == 3  # a and c


def test_answers_of_other_models_or_options_are_not_gone_on_with(
    options: RunOptions, make_plan: Plans, asked: list[str], tmp_path: Path
) -> None:
    cut_off(options, asked)
    again = replace(options, continue_prediction=True)
    other = save_model(tmp_path / "other", make_plan(), seed=2)
    with pytest.raises(
        UserError, match=r"run\.json: .* made with other networks than .*--continue_prediction"
    ):
        predict_scans.predict_scans(replace(again, ckpt_path=other))
    with pytest.raises(UserError, match="made with other --tta than"):
        predict_scans.predict_scans(replace(again, inference=InferenceOptions(tta=True)))
    assert asked == []


def test_a_row_is_read_as_it_was_written_and_other_columns_are_refused(
    make_plan: Plans, tmp_path: Path
) -> None:
    plan, path = make_plan(), tmp_path / "predictions.csv"
    rows = (PredictionRow(case_id="a", class_probs=(0.25, 0.75), volumes_ml=(1.5, 0.0)),)
    write_predictions_table(path, rows, plan)
    assert read_rows(path, plan) == rows
    with pytest.raises(DatasetError, match="which are not those of this model"):
        read_rows(path, make_plan(class_names=("x", "y")))


def test_only_a_prediction_of_scans_goes_on(options: RunOptions) -> None:
    prepared = replace(options, input=None, continue_prediction=True)
    for command in (inference.run, inference.evaluate):
        with pytest.raises(UserError, match="goes on with predictions of scans: give them with -i"):
            command(prepared)
    with pytest.raises(UserError, match="--continue_prediction: only a prediction has that"):
        train.run(replace(prepared, exec_mode="train"))
