"""Training on every case: no epoch is validated, nothing is scored, and the last weights are the model."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nnunet.training.checkpoint import MODEL_KEY, read_checkpoint
from scripts import inference, train
from scripts.run_options import RunOptions
from utils.errors import UserError
from utils.prepared_folder import complete_case_ids
from utils.run_log import read_log

if TYPE_CHECKING:
    from tests.stories.conftest import Phantom

pytestmark = pytest.mark.story

Options = Callable[..., RunOptions]


@pytest.mark.flag("fold")
def test_fold_all_trains_on_every_case_and_scores_none(
    phantom: "Phantom", run_options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = run_options(tmp_path, "--fold", "all", "--epochs", "1")
    checkpoint = train.run(options)
    assert checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    card = read_checkpoint(checkpoint)[MODEL_KEY]
    assert card["training_cases"] == list(complete_case_ids(phantom.prepared / "500_3d"))
    assert "nothing is scored" in capsys.readouterr().err
    (epoch,) = [line["data"] for line in read_log(tmp_path / "logs.json") if line.get("step") == [0]]
    assert "train/loss" in epoch
    assert not [name for name in epoch if name.startswith("val/")]
    for name in ("final_metrics.json", "report.html", "validation", "splits_final.json"):
        assert not (tmp_path / name).exists()
    for mode in (inference.evaluate, inference.run):
        with pytest.raises(UserError, match="--fold all holds none out"):
            mode(options)
