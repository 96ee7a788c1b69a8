"""A classical classifier from the end of a training to the answers that it gives in the branch's place."""

import csv
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nnunet.linear_classifier import FittedClassifier
from scripts import fit_classifier, inference, train
from scripts.classifier_files import read_scores
from scripts.model_run import ModelRun
from scripts.run_options import RunOptions
from utils.contracts import Prediction
from utils.errors import DatasetError, UserError
from utils.storage import read_json, read_record, write_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
Options = Callable[..., RunOptions]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities(folder: Path) -> np.ndarray:
    return np.array([[float(row[f"prob_{k}"]) for k in "012"] for row in table(folder / "predictions.csv")])


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The results of the finished run, to be written to."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def held_out(phantom: "Phantom", tmp_path: Path) -> tuple[str, str]:
    """--data of a copy without prepared test cases: what is predicted are the cases held out."""
    folder = shutil.copytree(phantom.prepared, tmp_path / "data", ignore=shutil.ignore_patterns("test"))
    return "--data", str(folder)


@pytest.mark.flag("fit_classifier")
def test_training_leaves_a_classifier_its_features_and_its_scores(trained: Path) -> None:
    classifier = read_record(FittedClassifier, trained / "classifier" / "lda.json")
    assert classifier.features.stages == (1, 2, 3)
    with np.load(trained / "classifier" / "features.npz", allow_pickle=False) as kept:
        assert kept["features"].shape == (9 + 3, 3 * (8 + 8) + 2 + 3 + 3)
        assert len(kept["case_ids"]) == 12
    classical = read_json(trained / "final_metrics.json")["classical"]
    assert classical["lda"]["out_of_fold"]["num_cases"] == 9
    assert classical["lda"]["held_out"]["num_cases"] == 3
    assert classical["lda"]["temperature"] == classifier.rule.temperature >= 1
    assert "; temperature " in (trained / "report.html").read_text(encoding="utf-8")
    assert "Classical classifier lda" in (trained / "report.html").read_text(encoding="utf-8")


@pytest.mark.flag("fit_classifier")
def test_without_it_training_leaves_none(run_options: Options, tmp_path: Path) -> None:
    train.run(run_options(tmp_path, "--max_epochs", "1", "--fit_classifier", "none"))
    assert not (tmp_path / "classifier").exists()
    assert read_json(tmp_path / "final_metrics.json")["classical"] == {}


@pytest.mark.flag("classifier")
def test_a_prediction_has_the_classifiers_answers_in_every_file(
    trained: Path, held_out: tuple[str, str], run_options: Options, tmp_path: Path
) -> None:
    branch = inference.run(run_options(trained, "-o", str(tmp_path / "branch"), *held_out))
    lda = inference.run(run_options(trained, "-o", str(tmp_path / "lda"), *held_out, "--classifier", "lda"))
    probs = probabilities(lda)
    assert not np.allclose(probs, probabilities(branch), atol=1e-3)
    with np.load(trained / "classifier" / "features.npz", allow_pickle=False) as kept:
        rows = dict(zip(kept["case_ids"].tolist(), kept["features"], strict=True))
    rule = read_record(FittedClassifier, trained / "classifier" / "lda.json").rule
    cases = [row["case"] for row in table(lda / "predictions.csv")]
    expected = rule.probabilities(np.array([rows[case] for case in cases]))
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    called = {row["Names"]: row["Subtype"] for row in table(lda / "subtype_results.csv")}
    assert called == {
        f"{case}.nii.gz": str(index) for case, index in zip(cases, expected.argmax(axis=1), strict=True)
    }


def test_scans_have_the_features_of_the_cases_prepared_from_them(
    trained: Path,
    phantom: "Phantom",
    held_out: tuple[str, str],
    run_options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    original = ModelRun.features

    def noted(run: ModelRun, image: np.ndarray, prediction: Prediction, *rest: Any) -> np.ndarray:
        seen[prediction.case_id].append(original(run, image, prediction, *rest))
        return seen[prediction.case_id][-1]

    monkeypatch.setattr(ModelRun, "features", noted)
    for flags in (held_out, ("-i", str(phantom.raw))):
        inference.run(run_options(trained, "-o", str(tmp_path / "out"), "--classifier", "lda", *flags))
    assert len(seen) == 3
    for prepared, scan in seen.values():
        # Prepared images are stored in half precision, and masks move by a voxel or two.
        np.testing.assert_allclose(scan, prepared, atol=0.01)


@pytest.mark.flag("classifier", "fit_classifier")
def test_another_classifier_is_fitted_later_and_scored_in_evaluation(
    copy: Path, run_options: Options
) -> None:
    features = (copy / "classifier" / "features.npz").stat().st_mtime_ns
    fit_classifier.run(run_options(copy, "--fit_classifier", "logistic"))
    assert (copy / "classifier" / "features.npz").stat().st_mtime_ns == features  # kept, not computed again
    inference.evaluate(
        run_options(
            copy, "--exec_mode", "evaluate", "--classifier", "logistic", "--logname", "evaluation.json"
        )
    )
    metrics = read_json(copy / "final_metrics.json")
    assert metrics["classifier"] == "logistic"
    assert set(metrics["classical"]) == {"lda", "logistic"}
    held_out = metrics["classical"]["logistic"]["held_out"]
    assert metrics["classification"]["nll"] == pytest.approx(held_out["nll"], abs=1e-6)


@pytest.mark.flag("fit_classifier")
def test_other_stages_are_computed_again(copy: Path, run_options: Options) -> None:
    path = fit_classifier.run(run_options(copy, "--fit_classifier", "lda:stages=1"))
    assert len(read_record(FittedClassifier, path).rule.mean) == 3 * 8 + 2 + 3 + 3


@pytest.mark.flag("fit_classifier")
def test_without_image_and_shape_a_classifier_answers_with_fewer_features(
    copy: Path, held_out: tuple[str, str], run_options: Options, tmp_path: Path
) -> None:
    path = fit_classifier.run(run_options(copy, "--fit_classifier", "lda:image=false,shape=false"))
    assert len(read_record(FittedClassifier, path).rule.mean) == 3 * (8 + 8) + 2
    options = run_options(copy, "-o", str(tmp_path / "out"), "--classifier", "lda", *held_out)
    assert probabilities(inference.run(options)).shape == (3, 3)


def test_scores_of_before_are_read_without_a_temperature(copy: Path) -> None:
    path = copy / "classifier" / "lda_scores.json"
    scores = read_json(path)
    del scores["temperature"]
    write_json(path, scores)
    assert read_scores(copy, scores["network"])["lda"].temperature == 1


def test_a_classifier_that_was_never_fitted_names_the_command(trained: Path, run_options: Options) -> None:
    with pytest.raises(DatasetError, match="fit_classifier.py --fit_classifier logistic --data .* --results"):
        inference.run(run_options(trained, "--classifier", "logistic"))


def test_a_classifier_of_another_network_is_refused(copy: Path, run_options: Options) -> None:
    path = copy / "classifier" / "lda.json"
    write_json(path, replace(read_record(FittedClassifier, path), network="0" * 64))
    with pytest.raises(DatasetError, match="was fitted on another network.*Fit it again: python"):
        inference.run(run_options(copy, "--classifier", "lda"))


def test_the_named_command_mends_it(
    copy: Path, held_out: tuple[str, str], run_options: Options, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "classifier")
    options = run_options(copy, "-o", str(tmp_path / "out"), "--classifier", "lda", *held_out)
    with pytest.raises(DatasetError) as error:
        inference.run(options)
    words = str(error.value).split("Fit it: python ")[1].split()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Classical classifier lda: macro-F1" in done.stdout + done.stderr
    assert probabilities(inference.run(options)).shape == (3, 3)


def test_a_training_does_not_use_a_classifier_that_it_never_fits(
    run_options: Options, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Add --fit_classifier logistic"):
        train.run(run_options(tmp_path, "--classifier", "logistic"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [("svm", "No classifier is called 'svm'"), ("lda:roi_label=7", "label of the lesion")],
)
def test_a_wrong_choice_is_refused_before_training(
    run_options: Options, tmp_path: Path, choice: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train.run(run_options(tmp_path, "--fit_classifier", choice))


def test_a_classifier_without_a_branch_answers(run_options: Options, tmp_path: Path) -> None:
    flags = ["--branch", "none", "--max_epochs", "1", "--classifier", "lda"]
    train.run(run_options(tmp_path, *flags))
    assert read_json(tmp_path / "final_metrics.json")["classification"]["num_cases"] == 3
    assert probabilities(tmp_path / "validation").shape == (3, 3)
