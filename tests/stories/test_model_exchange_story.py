"""A trained model exported, imported, and asked in the place of the one that it came from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import export_model, import_model, inference, train
from scripts.export_model import ExportOptions
from scripts.import_model import ImportOptions
from scripts.run_options import RunOptions

pytestmark = pytest.mark.story
Options = Callable[..., RunOptions]


@pytest.fixture
def imported(trained: Path, tmp_path: Path) -> Path:
    archive = export_model.run(ExportOptions(results=trained, output=tmp_path / "model.zip"))
    return import_model.run(ImportOptions(archive=archive, results=tmp_path / "imported"))


@pytest.mark.parametrize("classifier", ["branch", "lda"])
def test_it_predicts_the_same_masks_and_classes(
    trained: Path, imported: Path, run_options: Options, tmp_path: Path, classifier: str
) -> None:
    answers = []
    for results in (trained, imported):
        folder = tmp_path / f"answers of {results.name}"
        flags = ("--exec_mode", "predict", "--classifier", classifier, "--output", str(folder))
        inference.run(run_options(results, *flags))
        names = ("predictions.csv", *(path.name for path in sorted(folder.glob("*.nii.gz"))))
        answers.append({name: (folder / name).read_bytes() for name in names})
    assert len(answers[0]) == 1 + 3
    assert answers[0] == answers[1]


def test_a_training_starts_from_it(
    imported: Path, run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = imported / "checkpoints" / "model.safetensors"
    flags = ("--ckpt_path", str(weights), "--epochs", "1", "--fit_classifier", "none")
    assert train.run(run_options(tmp_path / "more", *flags)).is_file()
    assert f"weights taken from {weights}." in capsys.readouterr().err
