"""Two processes that share their batch statistics learn what one process learns from all images at once."""

from pathlib import Path

import pytest
import torch

from tests.nnunet.training.batch_norm_run import Ranks, images_of, run_ranks, run_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]


@pytest.mark.flag("sync_batchnorm")
@pytest.mark.parametrize("is_on", [False, True])
def test_only_joined_statistics_are_those_of_all_images(tmp_path: Path, *, is_on: bool) -> None:
    first, second = run_ranks(tmp_path, Ranks(device="cuda", sync_batchnorm=is_on))
    together = run_step(torch.cat([images_of(0), images_of(1)]), tmp_path, Ranks(device="cuda", number=1))
    expected = together["trained"]
    # A convolution of two images and one of four are summed in different orders, in a GPU's short products.
    close = [torch.allclose(first["trained"][n], expected[n], rtol=1e-2, atol=1e-4) for n in expected]
    assert all(close) == is_on
    for name, value in first["trained"].items():
        is_memory = name.endswith(("running_mean", "running_var"))
        assert torch.equal(second["trained"][name], value) or (is_memory and not is_on), name
