"""Volumes that stay on the host while their windows pass through a network on the GPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nnunet.inference import placement
from nnunet.inference.predict import predict_case
from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from tests.training_steps import network_for
from utils.contracts import Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("amp", [False, True])
def test_the_answer_is_that_of_a_volume_on_the_gpu(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, *, amp: bool
) -> None:
    plan = make_plan()
    network = network_for(plan, "plain", "roi_pooled").to(GPU).eval()
    image = np.random.default_rng(0).normal(size=(plan.num_channels, 9, 40, 35)).astype(np.float32)
    rule = WindowRule(patch=plan.patch, coding=LabelCoding.of_plan(plan))

    def predicted() -> tuple[np.ndarray, np.ndarray | None]:
        found = predict_case(network, image, rule, case_id="a", device=GPU, amp=amp)
        return found.label_probs, found.class_probs

    kept_there = predicted()
    monkeypatch.setattr(placement, "_free_bytes", lambda _: 0)
    kept_here = predicted()
    for here, there in zip(kept_here, kept_there, strict=True):
        np.testing.assert_allclose(here, there, atol=1e-5)
