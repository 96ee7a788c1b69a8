"""The shell scripts train, predict and evaluate in two stages, from a prepared folder to three results."""

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from utils.run_log import read_log
from utils.storage import read_json

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHORT = [
    "--device",
    "cpu",
    "--max_epochs",
    "1",
    "--steps_per_epoch",
    "1",
    "--num_workers",
    "1",
    "--filters",
    "2",
]
SECOND = ["--head_learning_rate", "0.01", "--fit_classifier", "none"]


def bash(script: str, *words: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NNUNETV2_")}
    answer = subprocess.run(
        ["bash", str(SCRIPTS / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.mark.parametrize("script", ["train.sh", "inf.sh", "eval.sh"])
def test_a_script_is_sound_and_explains_itself(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    answer = subprocess.run(["bash", str(SCRIPTS / script)], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert f"bash scripts/{script} " in answer.stderr


@pytest.mark.flag("learn", "ckpt_path")
def test_two_stages_lead_to_masks_classes_and_three_evaluations(phantom: "Phantom", tmp_path: Path) -> None:
    words: list[str | Path] = [phantom.prepared, "500", tmp_path / "run", *SHORT, "--", *SECOND]
    bash("train.sh", *words)
    first, second = (
        read_log(tmp_path / "run" / stage / "logs.json")[0]["data"] for stage in ("segmentation", "joint")
    )
    assert (first["learn"], first["ckpt_path"], first["head_learning_rate"]) == ("segmentation", None, None)
    assert (second["learn"], second["head_learning_rate"]) == ("joint", 0.01)
    best = sorted((tmp_path / "run" / "segmentation" / "checkpoints").glob("epoch=*.ckpt"))
    assert second["warm_start"]["checkpoint"] == str(best[-1])
    assert all(name.startswith("branch.") for name in second["warm_start"]["missing"])
    assert "holds a finished training" in bash("train.sh", *words)

    bash("inf.sh", tmp_path / "run", phantom.raw, tmp_path / "masks", "--device", "cpu", "--overlap", "0")
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert {"predictions.csv", "subtype_results.csv"} <= names
    assert len([name for name in names if name.endswith(".nii.gz")]) == 3

    splits = ["--splits", phantom.raw / "splits_final.json"]
    bash("eval.sh", phantom.raw, tmp_path / "masks", tmp_path / "scores", *splits)
    assert read_json(tmp_path / "scores" / "classification_metrics.json")["n_samples"] == 3
    for name in ("summary.json", "whole_pancreas_summary.json"):
        assert len(read_json(tmp_path / "scores" / name)["metric_per_case"]) == 3
