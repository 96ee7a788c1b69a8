"""One prepared volume and its prediction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet.inference.predict import predict_case
from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from utils.contracts import ModelOutput
from utils.errors import DatasetError

RULE, CPU = WindowRule(patch=(2, 4, 4)), torch.device("cpu")


def network(windows: Tensor) -> ModelOutput:
    classes = torch.tensor([0.0, 1.0]).expand(len(windows), 2)
    return ModelOutput(label_logits=(torch.cat([windows, -windows], dim=1),), class_logits=classes)


def test_probabilities_sum_to_one_and_keep_the_shape() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 5, 7)).astype(np.float16)
    prediction = predict_case(network, image, RULE, case_id="case", device=CPU, amp=False)
    assert prediction.label_probs.shape == (2, 3, 5, 7)
    np.testing.assert_allclose(prediction.label_probs.sum(axis=0), 1, rtol=1e-6)
    assert prediction.class_probs is not None
    np.testing.assert_allclose(prediction.class_probs, [0.26894, 0.73106], atol=1e-5)


def test_it_reads_a_mapped_array_without_writing_to_it() -> None:
    image = np.ones((1, 2, 4, 4), np.float32)
    image.flags.writeable = False
    predict_case(network, image, RULE, case_id="case", device=CPU, amp=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_names_the_case(value: float) -> None:
    image = np.full((1, 2, 4, 4), value, np.float32)
    with pytest.raises(DatasetError, match="Case broken"):
        predict_case(network, image, RULE, case_id="broken", device=CPU, amp=False)


def test_a_gpu_without_room_names_the_case_and_the_option() -> None:
    def too_large(windows: Tensor) -> ModelOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    image = np.ones((1, 2, 4, 4), np.float32)
    with pytest.raises(DatasetError, match="Case large: .* 4 windows at once.*--val_batch_size"):
        predict_case(too_large, image, RULE, case_id="large", device=CPU, amp=False)


def test_mixed_precision_reaches_the_network() -> None:
    layer, seen = torch.nn.Conv3d(1, 2, 1), []

    def convolution(windows: Tensor) -> ModelOutput:
        maps = layer(windows)
        seen.append(maps.dtype)
        return ModelOutput(label_logits=(maps,))

    image = np.ones((1, 2, 4, 4), np.float32)
    for amp in (False, True):
        predict_case(convolution, image, RULE, case_id="case", device=CPU, amp=amp)
    assert seen == [torch.float32, torch.bfloat16]


def test_regions_have_a_probability_each() -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    rule = replace(RULE, coding=LabelCoding(num_labels=3, regions=((1, 2), (2,))))
    probs = predict_case(network, image, rule, case_id="case", device=CPU, amp=False).label_probs
    np.testing.assert_allclose(probs[0], 1 / (1 + np.exp(-image[0])), rtol=1e-5)
    np.testing.assert_allclose(probs[1], 1 - probs[0], rtol=1e-5)
