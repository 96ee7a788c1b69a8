"""A cascade among other models, of drawn weights: each sees its own input, and the first stage is found."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.cases import load_case
from data_preprocessing.prepare import prepare_case
from data_preprocessing.previous_stage import cascade_plan
from data_preprocessing.scans import read_scans
from nnunet.evaluation.postprocessing import Postprocessing, Step
from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from scripts.ensemble import on_the_scan, open_ensemble
from scripts.model_postprocessing import choose_postprocessing
from scripts.predict_scans import predict_scans
from scripts.previous_stage import open_stages
from scripts.run_options import RunOptions
from scripts.stage_notes import write_previous_stage
from tests.scripts.test_ensemble import mask_of, options, save_model, scan
from utils.contracts import Plan, Prediction
from utils.errors import DatasetError, UserError
from utils.storage import write_json

__all__ = ["options", "scan"]  # fixtures
Plans = Callable[..., Plan]
Options = Callable[..., RunOptions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Results folders: one stage at full and at low resolution, and a second stage on the latter."""

    full: Path
    lowres: Path
    cascade: Path


@pytest.fixture
def models(make_plan: Plans, tmp_path: Path) -> Models:
    full = make_plan()
    save_model(tmp_path / "full", full, 1)
    save_model(tmp_path / "lowres", replace(full, spacing_mm=(3.0, 1.5, 1.5)), 2)
    save_model(tmp_path / "cascade", cascade_plan(full), 3)
    write_previous_stage(tmp_path / "cascade", tmp_path / "lowres")
    return Models(full=tmp_path / "full", lowres=tmp_path / "lowres", cascade=tmp_path / "cascade")


def on_scan(options: RunOptions) -> Prediction:
    """What the models of these options say on the scan's grid."""
    stages = open_stages(options)
    assert options.input is not None
    (raw,) = read_scans(options.input, num_channels=1)
    arrays = [prepare_case(load_case(raw), plan, mode="test") for plan in stages.plans]
    answer = stages.answer(arrays, "scan")
    if answer.footprint is None:
        return answer.prediction
    return on_the_scan(answer.prediction, answer.footprint, stages.last.plan)


@pytest.mark.parametrize("names", [("full", "cascade"), ("cascade", "full"), ("lowres", "cascade")])
def test_a_cascade_and_a_single_stage_answer_by_their_mean(
    models: Models, options: Options, names: tuple[str, str]
) -> None:
    paths = tuple(getattr(models, name) for name in names)
    folder = predict_scans(options("out", members=paths))
    single = [on_scan(options("x", members=(path,))) for path in paths]
    mean = mean_prediction(MemberAnswer(prediction=one) for one in single)
    mask = mask_of(folder)
    assert (mask == mean.label_probs.argmax(axis=0)).mean() > 0.999  # rounding, where two labels tie
    assert all((mask != one.label_probs.argmax(axis=0)).mean() > 0.01 for one in single)


def test_the_previous_stage_is_that_of_the_second_stages_alone(
    make_plan: Plans, models: Models, options: Options, tmp_path: Path
) -> None:
    for name in ("full_cv", "lowres_cv", "cascade_cv"):
        for fold in range(2):
            plan = make_plan() if name != "cascade_cv" else cascade_plan(make_plan())
            save_model(tmp_path / name / f"fold_{fold}", plan, fold + 1)
    write_previous_stage(tmp_path / "cascade_cv", tmp_path / "lowres_cv")
    members = (tmp_path / "full_cv", tmp_path / "cascade_cv" / "fold_1")
    previous = open_stages(options("x", members=members)).previous
    assert previous is not None
    # The other members are of other folds, or of none: the first stage is that of the second one's fold.
    assert [member.results for member in previous.members] == [tmp_path / "lowres_cv" / "fold_1"]


@pytest.mark.flag("previous_stage")
def test_two_cascades_share_a_previous_stage_or_are_refused(
    make_plan: Plans, models: Models, options: Options, tmp_path: Path
) -> None:
    save_model(tmp_path / "other", cascade_plan(make_plan()), 4)
    write_previous_stage(tmp_path / "other", models.lowres)
    together = options("x", members=(models.full, models.cascade, tmp_path / "other"))
    assert len(open_stages(together).last.second_stages) == 2
    write_previous_stage(tmp_path / "other", models.full)
    with pytest.raises(UserError, match="give second stages of the same cascade"):
        open_stages(together)
    named = open_stages(replace(together, previous_stage=models.lowres)).previous
    assert named is not None
    assert named.members[0].results == models.lowres


def test_a_second_stage_without_a_note_is_the_one_that_is_named(models: Models, options: Options) -> None:
    (models.cascade / "previous_stage.json").unlink()
    with pytest.raises(UserError, match=f"{models.cascade / 'checkpoints'}.* is the second stage"):
        open_stages(options("x", members=(models.lowres, models.cascade)))
    with pytest.raises(UserError, match="there is none among these models"):
        open_stages(options("x", members=(models.full, models.lowres), previous_stage=models.lowres))


def test_a_cascade_sees_what_its_first_stage_said(models: Models, options: Options) -> None:
    noted = on_scan(options("x", members=(models.full, models.cascade)))
    other = on_scan(options("x", members=(models.full, models.cascade), previous_stage=models.full))
    assert not np.array_equal(noted.label_probs, other.label_probs)


@pytest.mark.flag("ckpt_path")
def test_a_checkpoint_of_a_cascade_finds_what_lies_beside_it(
    make_plan: Plans, models: Models, options: Options, tmp_path: Path
) -> None:
    write_previous_stage(tmp_path / "cv", models.lowres)
    checkpoint = save_model(tmp_path / "cv" / "fold_1", cascade_plan(make_plan()), 5)
    for changes in ({}, {"results": tmp_path / "out"}):
        stages = open_stages(options("x", ckpt_path=checkpoint, **changes))
        assert stages.previous is not None
        assert stages.previous.members[0].results == models.lowres
    found = Postprocessing(
        steps=(Step(name="lesion", labels=(2,)),), trials=(), num_cases=1, dice_before=0, dice_after=1
    )
    write_json(tmp_path / "cv" / "postprocessing.json", found)
    for changes in ({}, {"results": tmp_path / "out"}):
        last = open_stages(options("x", ckpt_path=checkpoint, **changes)).last
        assert choose_postprocessing("auto", last).file == tmp_path / "cv" / "postprocessing.json"


def test_cases_that_one_fold_held_out_are_predicted_by_that_fold(
    make_plan: Plans, options: Options, tmp_path: Path
) -> None:
    for fold, cases in enumerate((("a", "b"), ("b", "c"))):
        save_model(tmp_path / "cv" / f"fold_{fold}", make_plan(), fold, cases=cases)
    together = open_ensemble(options("x", results=tmp_path / "cv"))
    together.refuse_training_cases(["d"])
    with pytest.raises(DatasetError, match="fold_0.* was trained on .* Give --folds 1 too"):
        together.refuse_training_cases(["a"])
    open_ensemble(options("x", results=tmp_path / "cv", folds=(1,))).refuse_training_cases(["a"])
    with pytest.raises(DatasetError, match="Give the --fold that"):
        together.refuse_training_cases(["b"])
