"""What every augmentation must do, run on each entry of the registry."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.types import DALIDataType

from data_loading.augmentations import AUGMENTATIONS, build_recipe
from data_loading.augmentations.base import Augmentation, DrawContext

NUM_DRAWS = 10_000
CONTEXT = DrawContext(patch=(6, 12, 10), num_channels=2)
Arrays = tuple[list[np.ndarray], list[np.ndarray]]


@pytest.fixture(params=[spec.name for spec in AUGMENTATIONS])
def part(request: pytest.FixtureRequest) -> Augmentation:
    return AUGMENTATIONS.build(request.param)


def phantom(part: Augmentation, drawn: np.ndarray, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels -1 to 2 in blocks that no flip maps onto themselves, and an image that is 10 x label + 20."""
    shape = part.source_shape(drawn, CONTEXT.patch)
    depth, height, width = shape
    label = np.zeros((1, *shape), np.int16)
    label[:, : depth // 3, : height // 3, : width // 3] = 1
    label[:, depth // 2 :, height // 2 :, : width // 2] = 2
    label[:, :, -1 - place % 2] = -1
    return np.repeat(10 * label + 20, CONTEXT.num_channels, axis=0).astype(np.float32), label


def apply(part: Augmentation, drawn: Sequence[np.ndarray], inputs: Arrays | None = None) -> Arrays:
    """Images and labels of one batch after `part` has acted in a CPU graph."""
    if inputs is None:
        pairs = [phantom(part, values, place) for place, values in enumerate(drawn)]
        inputs = [image for image, _ in pairs], [label for _, label in pairs]
    images, labels = inputs

    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202
        image, label, values = fn.external_source(
            source=lambda: (images, labels, list(drawn)),
            num_outputs=3,
            dtype=[DALIDataType.FLOAT, DALIDataType.INT16, DALIDataType.FLOAT],
            ndim=[4, 4, 1],
            layout=["CDHW", "CDHW", ""],
        )
        return part.apply(image, label, values)

    built: Any = graph
    pipeline = built(batch_size=len(drawn), num_threads=1, device_id=None, seed=0, prefetch_queue_depth=1)
    pipeline.build()
    image, label = pipeline.run()
    places = range(len(drawn))
    return [np.array(image.at(i)) for i in places], [np.array(label.at(i)) for i in places]


def draws(part: Augmentation, number: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([part.draw(random, CONTEXT) for _ in range(number)])


def active_draws(part: Augmentation, number: int, seed: int = 0) -> list[np.ndarray]:
    """The first draws in which something happens."""
    every = draws(replace(part, probability=0.5), 20 * number, seed)  # pyright: ignore[reportCallIssue]
    return list(every[every[:, 0] > 0][:number])


# --- numbers drawn -----------------------------------------------------------------------------------------


def test_it_declares_its_probability(part: Augmentation) -> None:
    probability = {field.name: field.default for field in fields(part)}["probability"]
    assert isinstance(probability, float)
    assert 0 < probability <= 1


def test_draws_are_finite_float32_vectors_of_one_length(part: Augmentation) -> None:
    random = np.random.default_rng(0)
    every = [part.draw(random, CONTEXT) for _ in range(50)]
    assert {values.dtype for values in every} == {np.dtype(np.float32)}
    assert {values.shape for values in every} == {every[0].shape}
    assert every[0].ndim == 1
    assert np.isfinite(every).all()


def test_the_same_seed_draws_the_same(part: Augmentation) -> None:
    np.testing.assert_array_equal(draws(part, 50, seed=3), draws(part, 50, seed=3))
    assert not np.array_equal(draws(part, 50, seed=3), draws(part, 50, seed=4))


def test_it_happens_as_often_as_it_says(part: Augmentation) -> None:
    """Mirroring asks for each of three axes."""
    single = {field.name: getattr(part, field.name) for field in fields(part)}["probability"]
    expected = 1 - (1 - single) ** 3 if part.name == "mirror" else single
    rate = (draws(part, NUM_DRAWS)[:, 0] > 0).mean()
    assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / NUM_DRAWS)


def test_with_probability_zero_it_never_happens(part: Augmentation) -> None:
    never = replace(part, probability=0.0)  # pyright: ignore[reportCallIssue]
    assert (draws(never, 1000)[:, 0] == 0).all()


def is_uniform(values: np.ndarray, low: float, high: float) -> bool:
    """Inside the range, reaching both ends, and half of it below the middle."""
    width = high - low
    is_inside = values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    reaches = values.min() < low + 0.01 * width and values.max() > high - 0.01 * width
    middle = abs((values < low + width / 2).mean() - 0.5)
    return bool(is_inside and reaches and middle < 4 * 0.5 / np.sqrt(values.size))


def check_noise_range(values: np.ndarray) -> None:
    assert is_uniform(values[:, 1], 0.0, 0.1)
    assert is_uniform(values[:, 2:].ravel(), 0.0, 2.0**24)
    np.testing.assert_array_equal(values[:, 2:], np.round(values[:, 2:]))


def check_brightness_range(values: np.ndarray) -> None:
    factors = values[:, 1:].ravel()
    assert abs((factors < 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(factors.size)
    assert is_uniform(factors[factors < 1], 0.75, 1.0)
    assert is_uniform(factors[factors >= 1], 1.0, 1.25)
    assert abs(np.corrcoef(values[:, 1], values[:, 2])[0, 1]) < 0.04  # channels differ


def check_mirror_range(values: np.ndarray) -> None:
    assert set(np.unique(values)) == {0.0, 1.0}
    np.testing.assert_array_equal(values[:, 0], values[:, 1:].max(axis=1))
    assert np.abs(values[:, 1:].mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(len(values))
    assert np.abs(np.corrcoef(values[:, 1:].T) - np.eye(3)).max() < 0.04  # axes are independent


RANGES: dict[str, Callable[[np.ndarray], None]] = {
    "noise": check_noise_range,
    "brightness": check_brightness_range,
    "mirror": check_mirror_range,
}


def test_its_values_fill_the_published_range(part: Augmentation) -> None:
    assert part.name in RANGES, f"Add the range of {part.name} to RANGES."
    RANGES[part.name](draws(part, NUM_DRAWS))


# --- voxels changed ----------------------------------------------------------------------------------------


def test_a_neutral_draw_is_the_identity(part: Augmentation) -> None:
    drawn = active_draws(part, 2)
    for values in drawn:
        values[0] = 0
    images, labels = apply(part, drawn)
    for place, values in enumerate(drawn):
        image, label = phantom(part, values, place)
        np.testing.assert_array_equal(images[place], image)
        np.testing.assert_array_equal(labels[place], label)


def test_an_active_draw_changes_the_image(part: Augmentation) -> None:
    drawn = active_draws(part, 4)
    images, _ = apply(part, drawn)
    for place, values in enumerate(drawn):
        before = phantom(part, values, place)[0]
        assert images[place].shape != before.shape or not np.array_equal(images[place], before)


def test_only_the_samples_that_drew_it_change(part: Augmentation) -> None:
    drawn = active_draws(part, 4)
    drawn[0][0] = drawn[2][0] = 0
    images, _ = apply(part, drawn)
    changed = [not np.array_equal(images[i], phantom(part, drawn[i], i)[0]) for i in range(4)]
    assert changed == [False, True, False, True]


def test_the_patch_keeps_shape_and_types(part: Augmentation) -> None:
    images, labels = apply(part, active_draws(part, 3))
    assert {image.shape for image in images} == {(CONTEXT.num_channels, *CONTEXT.patch)}
    assert {label.shape for label in labels} == {(1, *CONTEXT.patch)}
    assert {image.dtype for image in images} == {np.dtype(np.float32)}
    assert {label.dtype for label in labels} == {np.dtype(np.int16)}


def test_no_label_value_is_invented(part: Augmentation) -> None:
    _, labels = apply(part, active_draws(part, 8))
    assert all(set(np.unique(label)) <= {-1, 0, 1, 2} for label in labels)


def test_image_and_label_move_together(part: Augmentation) -> None:
    """The brightest label is where the image is brightest, before and after, to a rim of voxels."""
    drawn = active_draws(part, 8)
    images, labels = apply(part, drawn)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        brightest = image[0] > 0.5 * (image[0][label[0] == 2].mean() + image[0][label[0] == 1].mean())
        assert (brightest == (label[0] == 2)).mean() > 0.97
        turned = np.flip(phantom(part, drawn[place], place)[1][0], axis=0) == 2
        assert (
            turned == (phantom(part, drawn[place], place)[1][0] == 2)
        ).mean() < 0.9  # the phantom can tell


def test_the_same_draws_give_the_same_voxels(part: Augmentation) -> None:
    drawn = active_draws(part, 4)
    first, again = apply(part, drawn), apply(part, drawn)
    for one, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def check_noise(before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> None:
    """Residuals of the drawn spread and mean zero; four standard errors are allowed."""
    residuals = (after - before).ravel().astype(np.float64)
    assert abs(residuals.mean()) < 4 * drawn[1] / np.sqrt(residuals.size)
    assert abs(residuals.std() / drawn[1] - 1) < 4 / np.sqrt(2 * residuals.size)
    assert abs((np.abs(residuals) < drawn[1]).mean() - 0.6827) < 4 * np.sqrt(0.217 / residuals.size)


def check_brightness(before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> None:
    np.testing.assert_allclose(after, before * drawn[1:, None, None, None], rtol=1e-6)


def check_mirror(before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> None:
    axes = tuple(int(axis) for axis in np.flatnonzero(drawn[1:]) + 1)
    np.testing.assert_array_equal(after, np.flip(before, axes))


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], None]] = {
    "noise": check_noise,
    "brightness": check_brightness,
    "mirror": check_mirror,
}


def test_it_does_what_numpy_does(part: Augmentation) -> None:
    assert part.name in REFERENCES, f"Add the NumPy reference of {part.name} to REFERENCES."
    drawn = active_draws(part, 8)
    images, _ = apply(part, drawn)
    for place, values in enumerate(drawn):
        REFERENCES[part.name](phantom(part, values, place)[0], images[place], values)


# --- what one part alone promises --------------------------------------------------------------------------


def test_noise_differs_between_samples_channels_and_states() -> None:
    noise = AUGMENTATIONS.build("noise")
    drawn = active_draws(noise, 3)
    images, _ = apply(noise, drawn)
    residuals = [
        (images[i] - phantom(noise, drawn[i], i)[0])[c] / drawn[i][1] for i in range(3) for c in (0, 1)
    ]
    other, _ = apply(noise, drawn[1:])
    residuals.append((other[0] - phantom(noise, drawn[1], 0)[0])[0] / drawn[1][1])
    alike = np.corrcoef([residual.ravel() for residual in residuals]) - np.eye(7)
    assert np.abs(alike).max() < 5 / np.sqrt(np.prod(CONTEXT.patch))


def test_intensity_parts_leave_the_label_alone() -> None:
    for name in ("noise", "brightness"):
        part = AUGMENTATIONS.build(name)
        drawn = active_draws(part, 2)
        _, labels = apply(part, drawn)
        for place, values in enumerate(drawn):
            np.testing.assert_array_equal(labels[place], phantom(part, values, place)[1])


def test_a_single_slice_is_never_flipped_along_its_depth() -> None:
    flat = DrawContext(patch=(1, 12, 10), num_channels=1)
    random = np.random.default_rng(0)
    values = np.stack([AUGMENTATIONS.build("mirror").draw(random, flat) for _ in range(1000)])
    assert (values[:, 1] == 0).all()
    assert abs(values[:, 0].mean() - 0.75) < 0.06


def test_a_recipe_keeps_its_order_and_options() -> None:
    recipe = build_recipe(["mirror", "noise:probability=0.4,max_std=0.2"])
    assert [part.name for part in recipe] == ["mirror", "noise"]
    assert repr(recipe[1]) == "Noise(probability=0.4, max_std=0.2)"
    assert build_recipe(["none"]) == build_recipe([]) == ()
