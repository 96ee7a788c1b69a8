"""The weights of the resolutions."""

import pytest

from nnunet.losses.deep_supervision import supervision_weights


@pytest.mark.parametrize(
    ("num_outputs", "expected"), [(1, (1.0,)), (2, (2 / 3, 1 / 3)), (3, (4 / 7, 2 / 7, 1 / 7))]
)
def test_weights_halve_and_sum_to_one(num_outputs: int, expected: tuple[float, ...]) -> None:
    assert supervision_weights(num_outputs) == pytest.approx(expected)
