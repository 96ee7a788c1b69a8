"""Several runs side by side: Dice paired by case."""

import json
from pathlib import Path

import pytest

from benchmarks.collect_run import collect
from benchmarks.compare_runs import dice_difference, main, parse_run, read_dice
from utils.errors import DatasetError, UserError
from utils.storage import read_json, write_json

HEADER = "case,label,Dice,IoU\n"


def make_run(folder: Path, rate: float, dice: dict[str, str], macro_f1: float | None, **options: int) -> Path:
    (folder / "validation").mkdir(parents=True)
    rows = "".join(f"{case},lesion,{value},0\n" for case, value in dice.items())
    (folder / "validation" / "metrics.csv").write_text(HEADER + rows)
    classes = None
    if macro_f1 is not None:
        interval = {"low": macro_f1 - 0.1, "high": macro_f1 + 0.1}
        classes = {
            **dict.fromkeys(("macro_f1", "balanced_accuracy", "accuracy"), macro_f1),
            "intervals": {"macro_f1": interval},
            "auroc": {"value": 0.9},
            "confusion": {"counts": [[1]]},
            "best_baseline": {"macro_f1": 0.2},
            "collapse": "",
        }
    final = {"classification": classes} if classes else {}
    write_json(folder / "final_metrics.json", final)
    parameters = {
        "seed": 1,
        "learning_rate": rate,
        "results": "there",
        **options,
        "origins": {"seed": str(folder / "common.toml"), "learning_rate": "command line"},
        "warm_start": {"checkpoint": str(folder / "last.ckpt"), "loaded": 3},
    }
    lines = [
        {"type": "LOG", "step": "PARAMETER", "data": parameters},
        {"type": "LOG", "step": [0], "data": {"epoch": 0, "train_s": 1.0}},
        {"type": "LOG", "step": [1], "data": {"epoch": 1, "train_s": 2.0, "val/dsc": 0.4}},
    ]
    text = "".join(f"DLLL {json.dumps(line)}\n" for line in lines)
    (folder / "logs.json").write_text(text)

    return folder


def test_files_are_named_without_their_folders(tmp_path: Path) -> None:
    options = collect(make_run(tmp_path / "run", 0.1, {"a": "0.5"}, None))["options"]
    assert options["origins"] == {"seed": "common.toml", "learning_rate": "command line"}
    assert options["warm_start"] == {"checkpoint": "last.ckpt", "loaded": 3}


def test_dice_is_paired_case_by_case() -> None:
    reference = {"lesion": {"a": 0.5, "b": 0.9}}
    found = dice_difference({"lesion": {"b": 0.6, "a": 0.8}}, reference, "lesion")
    assert found["mean"] == pytest.approx(0.7)
    assert found["difference"] == pytest.approx(0.0)
    low, high = found["difference_interval"]
    assert (low, high) == pytest.approx((-0.3, 0.3))


def test_runs_on_other_cases_are_refused() -> None:
    with pytest.raises(DatasetError, match="1 and 2 cases"):
        dice_difference({"lesion": {"a": 0.5}}, {"lesion": {"a": 0.5, "b": 0.9}}, "lesion")


def test_a_case_without_a_dice_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.1, {"a": "0.5", "b": ""}, None)
    assert read_dice(run) == {"lesion": {"a": 0.5}}


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"metrics\.csv is missing"):
        read_dice(tmp_path)


@pytest.mark.parametrize("text", ["folder", "=folder", "name="])
def test_a_run_without_name_or_folder_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="NAME=RESULTS_FOLDER"):
        parse_run(text)


def test_shared_options_stand_once_and_others_beside_their_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = make_run(tmp_path / "alone", 0.1, {"a": "0.5", "b": "0.9"}, None)
    joint = make_run(tmp_path / "joint", 0.2, {"a": "0.4", "b": "0.8"}, 0.75)
    out = tmp_path / "out.json"
    main(["--out", str(out), "--note", "both", f"alone={alone}", f"joint={joint}"])
    content = read_json(out)
    assert content["note"] == "both"
    assert content["shared_options"]["seed"] == 1
    first, second = content["runs"]
    assert (first["options"], second["options"]) == ({"learning_rate": 0.1}, {"learning_rate": 0.2})
    assert "macro_f1" not in first
    assert (second["macro_f1"], second["constant_macro_f1"], second["train_seconds"]) == (0.75, 0.2, 2.0)
    assert second["dice"]["lesion"]["difference"] == pytest.approx(-0.1)
    assert "joint: Dice lesion 0.600 (-0.100) | macro-F1 0.750" in capsys.readouterr().err
    assert str(tmp_path) not in out.read_text()
