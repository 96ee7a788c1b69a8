"""A cascade goes to others with its first stage, and comes back as one folder that predicts."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.previous_stage import cascade_plan
from scripts import export_model, import_model
from scripts.export_model import ExportOptions
from scripts.import_model import ImportOptions
from scripts.predict_scans import predict_scans
from scripts.previous_stage import open_stages
from scripts.run_options import RunOptions
from scripts.stage_notes import NOTE, write_previous_stage
from tests.scripts.test_cascade_members import Models, models
from tests.scripts.test_ensemble import mask_of, options, scan
from tests.scripts.test_model_exchange import names, repacked, write_training
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.storage import write_json

__all__ = ["models", "options", "scan"]  # fixtures
Options = Callable[..., RunOptions]


@pytest.fixture
def folds(make_plan: Callable[..., Plan], tmp_path: Path) -> Path:
    """The results of a cascade: two folds of each stage, and a third one of the first."""
    for fold in range(3):
        plan = replace(make_plan(), spacing_mm=(3.0, 1.5, 1.5))
        write_training(tmp_path / "runs" / "lowres" / f"fold_{fold}", plan, seed=fold)
    for fold in range(2):
        plan = cascade_plan(make_plan())
        write_training(tmp_path / "runs" / "cascade" / f"fold_{fold}", plan, seed=10 + fold)
    write_previous_stage(tmp_path / "runs" / "cascade", tmp_path / "runs" / "lowres")
    return tmp_path / "runs"


def hashes(options: RunOptions) -> list[tuple[str, ...]]:
    stages = open_stages(options)
    assert stages.previous is not None
    return [one.networks() for one in (stages.last, stages.previous)]


def sent(results: Path, folder: Path, **changes: object) -> Path:
    """The results after an export and an import."""
    wanted = ExportOptions(results=results, output=folder / "sent.zip")
    archive = export_model.run(replace(wanted, **changes))  # pyright: ignore[reportArgumentType]
    return import_model.run(ImportOptions(archive=archive, results=folder / "far" / "away"))


def test_an_imported_cascade_predicts_as_the_one_that_it_came_from(
    models: Models, options: Options, tmp_path: Path
) -> None:
    for path in (models.cascade, models.lowres):
        write_json(path / "final_metrics.json", {"dsc_mean": 0.5})
    before = mask_of(predict_scans(options("before", results=models.cascade)))
    results = sent(models.cascade, tmp_path / "out")
    assert "previous_stage/checkpoints/model.safetensors" in names(results)
    after = mask_of(predict_scans(options("after", results=results)))
    np.testing.assert_array_equal(before, after)


def test_the_first_stage_goes_along_with_the_folds_of_the_second(
    folds: Path, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = sent(folds / "cascade", tmp_path)
    assert "2 models, and 2 of their previous stage, of Dataset001_Tiny" in capsys.readouterr().err
    assert [len(found) for found in hashes(options("x", results=results))] == [2, 2]
    assert hashes(options("x", results=results)) == hashes(options("x", results=folds / "cascade"))
    one = (options("x", results=place, folds=(1,)) for place in (results, folds / "cascade"))
    assert hashes(next(one)) == hashes(next(one))
    again = export_model.run(ExportOptions(results=results, output=tmp_path / "again.zip"))
    assert again.read_bytes() == (tmp_path / "sent.zip").read_bytes()


@pytest.mark.flag("export_model:previous_stage")
def test_a_first_stage_that_is_not_noted_has_to_be_named(
    folds: Path, options: Options, tmp_path: Path
) -> None:
    (folds / "cascade" / NOTE).unlink()
    with pytest.raises(UserError, match="Give its results folder as --previous_stage"):
        sent(folds / "cascade", tmp_path)
    results = sent(folds / "cascade", tmp_path, previous_stage=folds / "lowres" / "fold_2")
    assert [len(found) for found in hashes(options("x", results=results))] == [2, 1]


def test_a_note_that_leads_elsewhere_is_refused(folds: Path, tmp_path: Path) -> None:
    archive = export_model.run(ExportOptions(results=folds / "cascade", output=tmp_path / "c.zip"))
    with zipfile.ZipFile(archive) as opened:
        assert not any(str(tmp_path).encode() in opened.read(name) for name in opened.namelist())
    write_json(tmp_path / "forged.json", {"results": "../../secret"})

    def forge(content: dict[str, bytes]) -> None:
        content[NOTE] = (tmp_path / "forged.json").read_bytes()

    def drop(content: dict[str, bytes]) -> None:
        del content[NOTE]

    for change, reason in ((forge, "names another place"), (drop, "holds only one of")):
        changed = repacked(archive, change)
        with pytest.raises(DatasetError, match=reason):
            import_model.run(ImportOptions(archive=changed, results=tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
