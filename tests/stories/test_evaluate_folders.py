"""`python evaluate.py classification|segmentation|whole_organ REFERENCE PREDICTIONS` on folders made here."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.volume_io import write_volume
from nnunet.evaluation.class_outputs import ClassAnswer, write_class_files
from scripts.evaluate import main
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.storage import read_json, write_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"quiz_0_001": 0, "quiz_0_002": 0, "quiz_1_003": 1, "quiz_2_004": 2}
PROBS = {
    "quiz_0_001": (0.8, 0.1, 0.1),
    "quiz_0_002": (0.2, 0.7, 0.1),
    "quiz_1_003": (0.1, 0.8, 0.1),
    "quiz_2_004": (0.3, 0.1, 0.6),
}
SHAPE = (12, 10, 6)  # (x, y, z)
SPACING = (1.0, 1.0, 5.0)


def write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    write_volume(path, voxels, affine=affine, qform_code=1, sform_code=1, spacing_mm=SPACING)


def mask(start: int = 2) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[start : start + 5, 2:8, 1:4] = 1
    voxels[start + 1, 3:5, 2] = 2
    return voxels


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """Subtype folders with images and masks."""
    root = tmp_path / "validation"
    for case_id, subtype in CLASSES.items():
        write(root / f"subtype{subtype}" / f"{case_id}.nii.gz", mask())
        write(root / f"subtype{subtype}" / f"{case_id}_0000.nii.gz", mask().astype(np.float32))
    return root


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Masks one voxel off along x, and both files of classes; quiz_0_002 is called 1."""
    folder = tmp_path / "preds"
    for case_id in CLASSES:
        write(folder / f"{case_id}.nii.gz", mask(start=3))
    answers = [ClassAnswer(case_id=case_id, class_probs=probs) for case_id, probs in PROBS.items()]
    write_class_files(folder, answers, ("0", "1", "2"))
    return folder


def metrics(folder: Path) -> dict[str, object]:
    return read_json(folder / "classification_metrics.json")


@pytest.mark.flag("classification:reference", "classification:predictions")
def test_the_command_prints_and_writes_precision_recall_and_f1(challenge: Path, predictions: Path) -> None:
    command = [sys.executable, str(ROOT / "evaluate.py"), "classification", str(challenge), str(predictions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for word in ("precision", "recall", "F1", "best constant", "Confusion matrix"):
        assert word in done.stdout
    record = metrics(predictions)
    assert record["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert record["precision_per_class"] == [1.0, 0.5, 1.0]
    assert record["recall_per_class"] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("form", ["classes.csv", "classification_labels.csv", "classification.json"])
@pytest.mark.parametrize("place", ["file", "folder", "masks below"])
def test_every_form_of_the_reference_gives_the_same_scores(
    predictions: Path, tmp_path: Path, form: str, place: str
) -> None:
    root = tmp_path / "reference"
    for case_id in CLASSES:
        write(root / "labelsVal" / f"{case_id}.nii.gz", mask())
    rows = "\n".join(f"{case_id},{subtype}" for case_id, subtype in CLASSES.items())
    header = "case,class" if form == "classes.csv" else "Case_id,Subtype"
    text = json.dumps(CLASSES) if form.endswith("json") else f"{header}\n{rows}\n"
    (root / form).write_text(text)
    where = {"file": root / form, "folder": root, "masks below": root / "labelsVal"}[place]
    main(["classification", str(where), str(predictions)])
    assert metrics(predictions)["accuracy"] == 0.75


def test_masks_beside_a_table_choose_the_cases(predictions: Path, tmp_path: Path) -> None:
    root = tmp_path / "reference"
    write(root / "labelsVal" / "quiz_1_003.nii.gz", mask())
    (root / "classification.json").parent.mkdir(exist_ok=True)
    (root / "classification.json").write_text(json.dumps(CLASSES))
    main(["classification", str(root / "labelsVal"), str(predictions)])
    assert metrics(predictions)["n_samples"] == 1


@pytest.mark.parametrize("source", ["subtype_results.csv", "predictions.csv", ""])
def test_every_form_of_the_predictions_gives_the_same_classes(
    challenge: Path, predictions: Path, source: str
) -> None:
    rows = "\n".join(f"{case_id},{','.join(map(str, probs))}" for case_id, probs in PROBS.items())
    (predictions / "predictions.csv").write_text(f"case,prob_0,prob_1,prob_2\n{rows}\n")
    main(["classification", str(challenge), str(predictions / source)])
    assert metrics(predictions)["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.flag("classification:class_names", "classification:output")
def test_classes_may_be_given_names_and_results_a_folder(challenge: Path, predictions: Path) -> None:
    words = ["classification", str(challenge), str(predictions), "--class-names", "mild", "mixed", "wild"]
    main([*words, "-o", str(predictions / "out")])
    assert metrics(predictions / "out")["class_names"] == ["mild", "mixed", "wild"]
    with pytest.raises(UserError, match="--class_names gives 2 names for 3 classes"):
        main([*words[:-1]])
    with pytest.raises(UserError, match="--class_names repeats a name"):
        main([*words[:-1], "mild"])


def test_a_missing_and_a_doubled_case_are_named(challenge: Path, predictions: Path) -> None:
    table = predictions / "subtype_results.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[-1]]))
    with pytest.raises(DatasetError, match="more than one row for quiz_2_004"):
        main(["classification", str(challenge), str(table)])
    table.write_text("\n".join(rows[:-1]))
    with pytest.raises(DatasetError, match="lacks the class of 1 of 4 cases: quiz_2_004"):
        main(["classification", str(challenge), str(table)])
    for name in ("quiz_0_001.nii.gz", "quiz_0_001_0000.nii.gz"):
        (challenge / "subtype0" / name).rename(challenge / "subtype1" / name)
    with pytest.raises(DatasetError, match="tells subtype 0, the folder subtype1"):
        main(["classification", str(challenge), str(predictions)])


def test_a_mask_without_a_class_is_named(predictions: Path, tmp_path: Path) -> None:
    root = tmp_path / "reference"
    for case_id in ("quiz_0_001", "quiz_9_999"):
        write(root / "labelsTr" / f"{case_id}.nii.gz", mask())
    (root / "classification.json").write_text(json.dumps(CLASSES))
    with pytest.raises(DatasetError, match="no class for 1 cases: quiz_9_999"):
        main(["classification", str(root / "labelsTr"), str(predictions)])


def test_a_class_that_no_case_shows_is_a_class_all_the_same(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("case,class\nquiz_0_001,0\nquiz_2_004,2\n")
    table = predictions / "subtype_results.csv"
    table.write_text("Names,Subtype\nquiz_0_001.nii.gz,0\nquiz_2_004.nii.gz,2\n")
    main(["classification", str(tmp_path / "classes.csv"), str(table)])
    record = metrics(predictions)
    assert record["class_names"] == ["0", "1", "2"]
    assert record["absent_classes"] == ["1"]
    assert record["f1_macro"] == 1.0


def test_volumes_in_the_predictions_give_the_volume_baseline(challenge: Path, predictions: Path) -> None:
    rows = "\n".join(
        f"{case_id},{','.join(map(str, probs))},{10.0**index}"
        for index, (case_id, probs) in enumerate(PROBS.items())
    )
    (predictions / "predictions.csv").write_text(f"case,prob_0,prob_1,prob_2,volume_ml_lesion\n{rows}\n")
    main(["classification", str(challenge), str(predictions)])
    record = metrics(predictions)
    assert isinstance(record["volume_baseline"], dict)
    assert 0 <= record["volume_baseline"]["accuracy"] <= 1
    assert isinstance(record["temperature_scaling"], dict)
    assert record["temperature_scaling"]["temperature"] > 0


@pytest.mark.flag("segmentation:reference", "segmentation:predictions")
def test_segmentation_writes_dice_per_label_and_whole_organ_that_of_the_union(
    challenge: Path, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["segmentation", str(challenge), str(predictions), "-np", "1"])
    main(["whole_organ", str(challenge), str(predictions), "-np", "1"])
    labels = read_json(predictions / "summary.json")
    whole = read_json(predictions / "whole_pancreas_summary.json")
    assert set(labels["mean"]) == {"1", "2"}
    assert labels["mean"]["2"]["Dice"] == 0
    # Four of five slices overlap.
    assert whole["foreground_mean"]["Dice"] == pytest.approx(0.8)
    assert len(whole["metric_per_case"]) == 4
    assert "whole organ" in capsys.readouterr().out


def test_a_case_without_a_mask_is_named(challenge: Path, predictions: Path) -> None:
    (predictions / "quiz_1_003.nii.gz").unlink()
    with pytest.raises(DatasetError, match="1 of 4 cases have no prediction: quiz_1_003.*--allow_missing"):
        main(["whole_organ", str(challenge), str(predictions), "-np", "1"])


@pytest.mark.flag("segmentation:allow_missing")
def test_a_case_without_a_mask_counts_as_failed_where_that_is_allowed(
    challenge: Path, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (predictions / "quiz_1_003.nii.gz").unlink()
    words = [str(challenge), str(predictions), "-np", "1", "--allow_missing"]
    main(["whole_organ", *words])
    whole = read_json(predictions / "whole_pancreas_summary.json")
    assert whole["foreground_mean"]["Dice"] == pytest.approx(0.8 * 3 / 4)
    main(["segmentation", *words, "--surface_mm", "1"])
    assert "Cases without a prediction, scored 0: quiz_1_003." in capsys.readouterr().out
    with (predictions / "surface_metrics.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["label"] == "whole organ"]
    scores = {row["case"]: (row["surface_dice"], row["hd95_mm"]) for row in rows}
    assert scores["quiz_1_003"] == ("0", "inf")
    assert scores["quiz_0_001"] == ("1", "1")


@pytest.mark.flag("segmentation:djfile", "segmentation:pfile")
def test_names_of_labels_come_from_either_description_and_both_must_agree(
    challenge: Path, predictions: Path, tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    names = {"background": 0, "organ": 1, "lesion": 2}
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "CT"}, "labels": names})
    write_json(tmp_path / "plan.json", make_plan())
    words = ["segmentation", str(challenge), str(predictions), "-np", "1"]

    def labels(*more: str) -> list[str]:
        main([*words, *more])
        with (predictions / "metrics.csv").open(newline="") as stream:
            return [row["label"] for row in csv.DictReader(stream)][:3]

    assert labels() == ["1", "2", "whole organ"]
    for more in (["-djfile", str(tmp_path / "dataset.json")], ["-pfile", str(tmp_path / "plan.json")]):
        assert labels(*more) == ["organ", "lesion", "whole organ"]
    write_json(tmp_path / "plan.json", make_plan(label_names=("background", "x", "y")))
    with pytest.raises(UserError, match="two files of one dataset"):
        labels("-djfile", str(tmp_path / "dataset.json"), "-pfile", str(tmp_path / "plan.json"))


def test_plans_of_nnunet_are_accepted_for_nifti_only(
    challenge: Path, predictions: Path, tmp_path: Path
) -> None:
    words = [
        "segmentation",
        str(challenge),
        str(predictions),
        "-np",
        "1",
        "-pfile",
        str(tmp_path / "plans.json"),
    ]
    write_json(tmp_path / "plans.json", {"image_reader_writer": "SimpleITKIO"})
    main(words)
    write_json(tmp_path / "plans.json", {"image_reader_writer": "NaturalImage2DIO"})
    with pytest.raises(UserError, match="only NIfTI"):
        main(words)


@pytest.mark.flag("segmentation:surface_mm")
def test_surfaces_are_measured_in_millimetres_on_request(challenge: Path, predictions: Path) -> None:
    words = ["segmentation", str(challenge), str(predictions), "-np", "1"]
    main([*words, "--surface_mm", "1.0"])
    with (predictions / "surface_metrics.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["label"] == "whole organ")
    # Shifted by one millimetre along x: all of both surfaces lies within one millimetre.
    assert (float(row["surface_dice"]), float(row["hd95_mm"])) == (1.0, 1.0)
    main([*words, "--surface_mm", "0.5"])
    with (predictions / "surface_metrics.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["label"] == "whole organ")
    assert float(row["surface_dice"]) < 1


@pytest.mark.flag("segmentation:empty", "segmentation:output")
@pytest.mark.parametrize(("rule", "expected"), [("nan", None), ("one", 1.0)])
def test_the_rule_for_empty_labels_holds_in_the_folder_of_the_results(
    challenge: Path, predictions: Path, tmp_path: Path, rule: str, expected: float | None
) -> None:
    for path in (challenge / "subtype0" / "quiz_0_001.nii.gz", predictions / "quiz_0_001.nii.gz"):
        write(path, np.minimum(mask(), 1))
    words = ["segmentation", str(challenge), str(predictions), "-np", "1", "-o", str(tmp_path / "out")]
    main([*words, "--empty", rule])
    first = read_json(tmp_path / "out" / "summary.json")["metric_per_case"][0]
    assert first["metrics"]["2"]["Dice"] == expected
    assert not (predictions / "summary.json").exists()


@pytest.mark.flag("classification:djfile", "classification:pfile")
def test_names_of_classes_come_from_either_description(
    predictions: Path, tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    names = ("mild", "mixed", "wild")
    (tmp_path / "classes.csv").write_text(
        "\n".join(["case,class", *(f"{case_id},{names[index]}" for case_id, index in CLASSES.items())])
    )
    words = ["classification", str(tmp_path / "classes.csv"), str(predictions)]
    with pytest.raises(DatasetError, match="none of"):
        main(words)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "classification": {"classes": list(names)},
    }
    write_json(tmp_path / "dataset.json", description)
    write_json(tmp_path / "plan.json", make_plan(num_classes=3, class_names=names))
    for more in (["-djfile", str(tmp_path / "dataset.json")], ["-pfile", str(tmp_path / "plan.json")]):
        main([*words, *more])
        assert metrics(predictions)["class_names"] == list(names)


@pytest.mark.flag("classification:seed")
def test_another_seed_draws_other_intervals(challenge: Path, predictions: Path) -> None:
    found = []
    for seed in ("0", "0", "1"):
        main(["classification", str(challenge), str(predictions), "--seed", seed])
        found.append(metrics(predictions)["intervals"])
    assert found[0] == found[1] != found[2]


@pytest.mark.flag("classification:splits", "classification:fold", "segmentation:splits", "segmentation:fold")
def test_a_fold_chooses_the_cases_of_every_command(
    challenge: Path, predictions: Path, tmp_path: Path
) -> None:
    ids = list(CLASSES)
    folds = [{"train": ids[2:], "val": ids[:2]}, {"train": ids[:3], "val": ids[3:]}]
    write_json(tmp_path / "splits.json", folds)
    for fold, count in ((0, 2), (1, 1)):
        more = ["--splits", str(tmp_path / "splits.json"), "--fold", str(fold)]
        main(["classification", str(challenge), str(predictions), *more])
        main(["segmentation", str(challenge), str(predictions), "-np", "1", *more])
        assert metrics(predictions)["n_samples"] == count
        assert len(read_json(predictions / "summary.json")["metric_per_case"]) == count
    with pytest.raises(DatasetError, match="folds 0 to 1"):
        main(["classification", str(challenge), str(predictions), *more[:-1], "2"])


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("segmentation", ["-np", "0"], "--n_jobs is 0; give a number of processes"),
        ("whole_organ", ["--n_jobs", "0"], "--n_jobs is 0; give a number of processes"),
        ("segmentation", ["--surface_mm", "nan"], "--surface_mm should be at least 0, got nan"),
        ("segmentation", ["--surface_mm", "inf"], "--surface_mm should be at least 0, got inf"),
        ("segmentation", ["--surface_mm", "-1"], "--surface_mm should be at least 0, got -1"),
        ("classification", ["--seed", "-1"], "--seed should be at least 0, got -1"),
    ],
)
def test_a_number_that_means_nothing_is_refused_before_anything_is_written(
    challenge: Path, predictions: Path, command: str, more: list[str], message: str
) -> None:
    before = sorted(predictions.iterdir())
    with pytest.raises(UserError, match=message):
        main([command, str(challenge), str(predictions), *more])
    assert sorted(predictions.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clasification", "a", "b"], "is no comparison; choose classification"),
        (["classification", "a"], "needs two places"),
        (["classification", "nowhere", "b"], "nowhere does not exist"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)
