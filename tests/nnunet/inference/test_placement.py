"""Where a volume is kept, by made figures of free memory."""

import pytest
import torch

from nnunet.inference import placement
from nnunet.inference.placement import home_of
from nnunet.label_coding import LabelCoding

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
LABELS = LabelCoding(num_labels=15)
SHAPE = (1, 600, 512, 512)
NEED = 4 * 600 * 512 * 512 * (2 + 5 * 15 + 1)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that the GPU tells one time after the other; the list is emptied."""
    told: list[int] = []
    monkeypatch.setattr(placement, "_free_bytes", lambda _: told.pop(0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return told


def test_what_fits_lies_on_the_device(free: list[int]) -> None:
    free.append(2 * NEED)
    assert home_of(SHAPE, LABELS, GPU) == GPU


def test_memory_that_torch_keeps_is_counted_once_it_is_given_back(free: list[int]) -> None:
    free += [NEED, 2 * NEED]
    assert home_of(SHAPE, LABELS, GPU) == GPU
    assert not free


def test_what_does_not_fit_stays_on_the_host(free: list[int]) -> None:
    free += [2 * NEED - 8, 2 * NEED - 8]
    assert home_of(SHAPE, LABELS, GPU) == HOST


def test_regions_are_counted_and_not_their_labels(free: list[int]) -> None:
    free.append(2 * 4 * 600 * 512 * 512 * (2 + 5 * 2 + 1))
    coding = LabelCoding(num_labels=15, regions=((1, 2), (2,)))
    assert home_of(SHAPE, coding, GPU) == GPU


def test_a_cpu_has_no_other_place() -> None:
    assert home_of((1, 10**6, 10**6, 10**6), LABELS, HOST) == HOST
