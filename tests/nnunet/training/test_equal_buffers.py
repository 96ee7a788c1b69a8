"""Two processes whose batches differ validate one network: that of rank 0, which a checkpoint holds."""

from pathlib import Path

import pytest
import torch

from tests.nnunet.training.batch_norm_run import Ranks, run_ranks

MEAN = "network.encoder.stages.0.0.1.running_mean"


@pytest.mark.story
def test_every_rank_validates_what_rank_0_remembers(tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, Ranks(device="cpu"))
    assert not torch.allclose(first["trained"][MEAN], second["trained"][MEAN], rtol=0.1)
    for name, value in first["trained"].items():
        assert torch.equal(first["validated"][name], value)
        assert torch.equal(second["validated"][name], value), name
