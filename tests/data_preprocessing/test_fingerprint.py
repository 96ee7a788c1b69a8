"""The fingerprint against the plain NumPy computation it stands for."""

from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.fingerprint import CaseMeasurement, measure_case, samples_per_case, summarise
from utils.contracts import Dataset
from utils.errors import DatasetError


def dataset(*channels: str) -> Dataset:
    return Dataset(
        name="Toy",
        root=Path("toy"),
        channel_names=channels,
        label_names=("background", "organ"),
        class_names=(),
        class_title="",
        training=(),
        test=(),
    )


def measure(image: np.ndarray, label: np.ndarray, num_samples: int, case_id: str = "a") -> CaseMeasurement:
    return measure_case(
        image.astype(np.float32),
        label,
        case_id=case_id,
        spacing_mm=(3.0, 1.0, 2.0),
        relative_size=0.5,
        num_samples=num_samples,
    )


def random_case(seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.normal(100, 30, (channels, 6, 7, 8)).round(1).astype(np.float32)
    return image, (random.random((6, 7, 8)) > 0.5).astype(np.int16)


def legacy_draw(image: np.ndarray, label: np.ndarray, num_samples: int) -> list[np.ndarray]:
    """Every case restarts the generator; its channels continue it."""
    draw = np.random.RandomState(1234)  # noqa: NPY002 - the reference draws with it
    return [draw.choice(channel[label > 0], num_samples, replace=True) for channel in image]


def test_the_budget_is_shared_equally() -> None:
    assert samples_per_case(260) == 384_615
    assert samples_per_case(3, budget=2) == 1


def test_statistics_are_those_of_the_legacy_draw() -> None:
    cases = [random_case(seed, channels=2) for seed in (1, 2)]
    fingerprint = summarise(dataset("CT", "PET"), [measure(*case, num_samples=999) for case in cases])
    for channel, found in enumerate(fingerprint.intensity):
        drawn = np.concatenate([legacy_draw(*case, 999)[channel] for case in cases]).astype(np.float64)
        low, median, high = np.percentile(drawn, (0.5, 50, 99.5))
        expected = (drawn.mean(), drawn.std(), median, drawn.min(), drawn.max(), low, high)
        got = (found.mean, found.std, found.median, found.min, found.max, found.low, found.high)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_drawing_in_portions_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    image, label = random_case(3)
    whole = measure(image, label, 1000).foreground[0]
    monkeypatch.setattr("data_preprocessing.fingerprint.DRAWS_AT_ONCE", 77)
    portions = measure(image, label, 1000).foreground[0]
    np.testing.assert_array_equal(whole.values, portions.values)
    np.testing.assert_array_equal(whole.counts, portions.counts)


def test_the_fingerprint_keeps_one_entry_per_case_in_order() -> None:
    measurements = [measure(*random_case(seed), 10, case_id=name) for seed, name in ((1, "b"), (2, "a"))]
    fingerprint = summarise(dataset("CT"), measurements)
    assert fingerprint.case_ids == ("b", "a")
    assert fingerprint.shapes == ((6, 7, 8), (6, 7, 8))
    assert fingerprint.spacings_mm == ((3.0, 1.0, 2.0),) * 2
    assert fingerprint.relative_sizes == (0.5, 0.5)


def test_a_small_organ_weighs_as_much_as_a_large_one() -> None:
    image, label = np.zeros((1, 10, 10, 10)), np.ones((10, 10, 10), np.int16)
    bright, speck = np.full_like(image, 10.0), np.zeros_like(label)
    speck[0, 0, 0] = 1
    fingerprint = summarise(dataset("CT"), [measure(image, label, 100), measure(bright, speck, 100)])
    assert fingerprint.intensity[0].mean == 5.0


def test_values_outside_the_non_zero_mask_are_no_foreground() -> None:
    image, label = np.array([1.0, 2.0, 99.0]).reshape(1, 1, 1, 3), np.array([1, 2, -1]).reshape(1, 1, 3)
    assert summarise(dataset("CT"), [measure(image, label, 50)]).intensity[0].max == 2.0


def test_a_case_without_foreground_leaves_the_statistics_to_the_others() -> None:
    image, label = random_case(1)
    both = summarise(dataset("CT"), [measure(image, label, 50), measure(image, label * 0, 50)])
    assert both.intensity == summarise(dataset("CT"), [measure(image, label, 50)]).intensity


def test_no_foreground_anywhere_is_an_error_that_names_the_dataset() -> None:
    image, label = random_case(1)
    with pytest.raises(DatasetError, match="Toy: none of the 1 training labels .* channel 'CT'"):
        summarise(dataset("CT"), [measure(image, label * 0, 50)])


def test_no_training_case_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no training case"):
        summarise(dataset("CT"), [])


def test_a_label_of_another_grid_is_an_error_that_names_the_case() -> None:
    image, label = random_case(1)
    with pytest.raises(DatasetError, match=r"Case a: image has shape \(6, 7, 8\) but label has \(5, 7, 8\)"):
        measure(image, label[1:], 50)
