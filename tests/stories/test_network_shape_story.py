"""A network of another shape than planned is trained, kept with its shape, and predicts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet.encoders.residual import ResidualBlock
from nnunet.training.checkpoint import load_model
from scripts import train
from scripts.run_options import RunOptions
from utils.contracts import Stage
from utils.storage import read_json

pytestmark = pytest.mark.story


@pytest.mark.flag("res_block", "depth", "min_fmap", "filters")
def test_a_checkpoint_holds_the_shape_that_was_trained(
    run_options: Callable[..., RunOptions], tmp_path: Path
) -> None:
    words = ["--res_block", "--depth", "3", "--min_fmap", "2", "--filters", "4", "6", "--epochs", "1"]
    path = train.run(run_options(tmp_path, *words))
    model = load_model(path, torch.device("cpu"))
    # The patch is 8x16x16: two poolings leave 2 slices, the third halves the slices' plane alone.
    assert [stage.stride for stage in model.plan.stages] == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert model.plan.stages[3] == Stage(channels=6, kernel=(3, 3, 3), stride=(1, 2, 2))
    blocks = [part for part in model.network.modules() if isinstance(part, ResidualBlock)]
    assert len(blocks) == 2 * len(model.plan.stages)
    # Zero at the start: training has moved it.
    assert all(block.second[-1].weight.any() for block in blocks)  # pyright: ignore
    assert read_json(tmp_path / "final_metrics.json")["num_cases"] == 3
