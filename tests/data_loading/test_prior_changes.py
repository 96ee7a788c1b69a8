"""Damage of the previous stage's labels: against SciPy with an explicit ball, and by hand."""

from math import prod

import numpy as np
import pytest
from scipy import ndimage

from data_loading.kernels.prior import LARGEST_RADIUS, dilate_by_ball
from data_loading.prior_changes import OPERATORS, RADIUS, damage_prior, draw_damage
from utils.contracts import Shape

NUM_DRAWS = 10_000
NOTHING = -1.0


def ball(radius: float) -> np.ndarray:
    """Offsets whose Euclidean length is at most `radius`."""
    reach = int(radius)
    z, y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    return z * z + y * y + x * x <= radius * radius


def by_scipy(mask: np.ndarray, operator: str, radius: float) -> np.ndarray:
    shape = ball(radius)

    def dilated(voxels: np.ndarray) -> np.ndarray:
        return ndimage.binary_dilation(voxels, shape)

    def eroded(voxels: np.ndarray) -> np.ndarray:
        return ndimage.binary_erosion(voxels, shape, border_value=1)

    if operator == "open":
        return dilated(eroded(mask))
    if operator == "close":
        return eroded(dilated(mask))
    return dilated(mask) if operator == "dilate" else eroded(mask)


def blobs(shape: Shape, seed: int, labels: int = 1) -> np.ndarray:
    """(1, D, H, W) int16: smooth noise cut into `labels` labels, some of which touch the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    limits = np.quantile(noise, np.linspace(0.6, 0.95, labels))
    return np.digitize(noise, limits).astype(np.int16)[None]


def drawn_of(*rows: tuple[float, ...]) -> np.ndarray:
    """The drawn vector of labels with (key, operator, radius, choice) each."""
    return np.array([1.0, *np.ravel(rows)], np.float32)


def many_draws(prior_labels: int) -> np.ndarray:
    random = np.random.default_rng(7)
    return np.stack([draw_damage(random, prior_labels) for _ in range(NUM_DRAWS)])


@pytest.mark.parametrize("shape", [(17, 20, 23), (1, 30, 25), (3, 16, 16), (5, 4, 9)])
@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.0, 7.9, float(LARGEST_RADIUS)])
def test_a_ball_reaches_what_scipy_reaches(shape: Shape, radius: float) -> None:
    mask = np.random.default_rng(2).random(shape) < 0.02
    mask[-1, -1, 0] = True
    np.testing.assert_array_equal(dilate_by_ball(mask, radius), ndimage.binary_dilation(mask, ball(radius)))


def test_nothing_grows_from_nothing() -> None:
    assert not dilate_by_ball(np.zeros((3, 4, 5), bool), 8.0).any()


@pytest.mark.parametrize("shape", [(18, 20, 22), (1, 30, 26), (4, 24, 20)])
@pytest.mark.parametrize("radius", [1.0, 2.0, 2.6, 3.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_one_label_changes_as_by_scipy(operator: str, radius: float, shape: Shape) -> None:
    prior = blobs(shape, seed=4)
    drawn = drawn_of((0.5, OPERATORS.index(operator), radius, NOTHING))
    damaged = damage_prior(prior, drawn, shape)
    radius = float(drawn[3])  # in single precision
    np.testing.assert_array_equal(damaged[0], by_scipy(prior[0] == 1, operator, radius))
    assert damaged.dtype == np.int16


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_solid_box_far_from_the_border_changes_as_by_scipy(operator: str) -> None:
    """Only the box around a label is computed; its faces must still see what lies beyond."""
    prior = np.zeros((1, 30, 31, 32), np.int16)
    prior[0, 8:22, 8:23, 8:24] = 1
    prior[0, 14, 14, 14] = 0
    drawn = drawn_of((0.5, OPERATORS.index(operator), 3.0, NOTHING))
    damaged = damage_prior(prior, drawn, (30, 31, 32))
    np.testing.assert_array_equal(damaged[0], by_scipy(prior[0] == 1, operator, 3.0))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_labels_change_one_after_the_other(order: tuple[int, ...]) -> None:
    """Channel by channel: what one gains the others lose, what it loses becomes background."""
    prior = blobs((16, 18, 20), seed=9, labels=3)
    operators, radii = ("dilate", "open", "erode"), (2.0, 1.0, 3.0)
    keys = [order.index(place) / 10 for place in range(3)]
    rows = [
        (key, OPERATORS.index(name), radius, NOTHING)
        for key, name, radius in zip(keys, operators, radii, strict=True)
    ]
    channels = np.stack([prior[0] == label for label in (1, 2, 3)])
    for place in order:
        changed = by_scipy(channels[place], operators[place], radii[place])
        gained = changed & ~channels[place]
        channels[:, gained] = False
        channels[place] = changed
    expected = channels[0] + 2 * channels[1] + 3 * channels[2]
    np.testing.assert_array_equal(damage_prior(prior, drawn_of(*rows), (16, 18, 20))[0], expected)


def test_the_input_stays_as_it_was() -> None:
    prior = blobs((8, 9, 10), seed=1)
    kept = prior.copy()
    damage_prior(prior, drawn_of((0.0, 0, 2.0, 0.5)), (8, 9, 10))
    np.testing.assert_array_equal(prior, kept)


def components_phantom() -> np.ndarray:
    """In 10 x 10 x 10 voxels: label 1 as a large block, two small ones that touch by a corner, and one alone.

    15 % of the volume are 150 voxels: the block has 200, the two together 16, the one alone 1. Label 2 once.
    """
    prior = np.zeros((1, 10, 10, 10), np.int16)
    prior[0, :2] = 1
    prior[0, 4:6, 4:6, 4:6] = prior[0, 6:8, 6:8, 6:8] = 1
    prior[0, 9, 0, 0] = 1
    prior[0, 4, 0, 0] = 2
    return prior


@pytest.mark.parametrize("choice", [0.0, 0.49, 0.5, 0.99, 1.0])
def test_one_of_the_small_components_is_removed(choice: float) -> None:
    prior = components_phantom()
    expected = prior.copy()
    if choice < 0.5:
        expected[0, 4:8, 4:8, 4:8] = 0
    else:
        expected[0, 9, 0, 0] = 0
    drawn = drawn_of((0.1, NOTHING, 2.0, choice), (0.2, NOTHING, 2.0, NOTHING))
    np.testing.assert_array_equal(damage_prior(prior, drawn, (10, 10, 10)), expected)


def test_a_component_of_fifteen_percent_stays() -> None:
    for voxels, stays in ((149, False), (150, True)):
        prior = np.zeros((1, 10, 10, 10), np.int16)
        prior[0].ravel()[:voxels] = 1
        damaged = damage_prior(prior, drawn_of((0.1, NOTHING, 2.0, 0.3)), (10, 10, 10))
        assert damaged.any() == stays


def test_components_count_by_what_the_patch_shows_of_them() -> None:
    """A block of 12 around a patch of 6: a bar reaches into the patch by 3 voxels, a cube lies outside."""
    prior = np.zeros((1, 12, 12, 12), np.int16)
    prior[0, 5, 5, :6] = 1
    prior[0, 0, :2, 9:] = 1
    for choice in (0.0, 0.99):
        damaged = damage_prior(prior, drawn_of((0.1, NOTHING, 2.0, choice)), (6, 6, 6))
        assert not damaged[0, 5, 5].any()
        np.testing.assert_array_equal(damaged[0, 0], prior[0, 0])
    prior[0, 3:9, 3:9, :8] = 1  # far over 15 % of the patch now
    assert (damage_prior(prior, drawn_of((0.1, NOTHING, 2.0, 0.5)), (6, 6, 6)) == prior).all()


def test_a_label_eroded_away_leaves_no_component_to_remove() -> None:
    prior = components_phantom()
    damaged = damage_prior(
        prior, drawn_of((0.1, OPERATORS.index("erode"), 8.0, 0.5), (0.2, NOTHING, 1.0, 0.5)), (10, 10, 10)
    )
    assert not damaged.any()


def test_labels_that_do_not_occur_change_nothing() -> None:
    empty = np.zeros((1, 5, 6, 7), np.int16)
    drawn = drawn_of(*[(0.1, 0, 8.0, 0.5)] * 3)
    assert not damage_prior(empty, drawn, (5, 6, 7)).any()


def test_a_neutral_draw_changes_nothing() -> None:
    prior = blobs((6, 7, 8), seed=3, labels=2)
    draws = many_draws(2)
    neutral = draws[draws[:, 0] == 0][0]
    np.testing.assert_array_equal(damage_prior(prior, neutral, (6, 7, 8)), prior)


def test_rates_and_ranges_are_those_of_nnunet() -> None:
    draws = many_draws(3)
    each = draws[:, 1:].reshape(NUM_DRAWS, 3, 4)
    operators, radii, choices = each[..., 1], each[..., 2], each[..., 3]
    operated, removed = operators != NOTHING, choices != NOTHING
    assert operated.mean(axis=0) == pytest.approx(0.4 * 0.5, abs=0.015)
    assert removed.mean(axis=0) == pytest.approx(0.2 * 0.5, abs=0.012)
    # The sample decides first, then each label for itself.
    assert operated.any(axis=1).mean() == pytest.approx(0.4 * (1 - 0.5**3), abs=0.015)
    assert removed.any(axis=1).mean() == pytest.approx(0.2 * (1 - 0.5**3), abs=0.012)
    assert (operated.any(axis=1) & removed.any(axis=1)).mean() == pytest.approx(
        0.4 * 0.2 * (7 / 8) ** 2, abs=0.01
    )
    np.testing.assert_array_equal(draws[:, 0] != 0, (operated | removed).any(axis=1))
    shares = np.bincount(operators[operated].astype(int), minlength=4) / operated.sum()
    assert shares == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert RADIUS == (1.0, 8.0)
    assert radii.min() >= 1.0
    assert radii.max() <= 8.0
    assert np.quantile(radii[operated], [0.25, 0.5, 0.75]) == pytest.approx([2.75, 4.5, 6.25], abs=0.2)
    assert np.quantile(choices[removed], [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    first = np.bincount(each[..., 0].argmin(axis=1), minlength=3) / NUM_DRAWS
    assert first == pytest.approx(np.full(3, 1 / 3), abs=0.02)


@pytest.mark.parametrize("prior_labels", [1, 4])
def test_a_draw_consumes_the_same_numbers_whatever_it_decides(prior_labels: int) -> None:
    for seed in range(20):
        random, other = np.random.default_rng(seed), np.random.default_rng(seed)
        drawn = draw_damage(random, prior_labels)
        other.random(2 + 6 * prior_labels)
        assert random.random() == other.random()
        assert drawn.dtype == np.float32
        assert drawn.shape == (1 + 4 * prior_labels,)


def test_every_drawn_damage_keeps_the_labels_within_their_range() -> None:
    prior, shape = blobs((12, 13, 14), seed=6, labels=3), (12, 13, 14)
    changed = 0
    for drawn in many_draws(3)[:60]:
        damaged = damage_prior(prior, drawn, shape)
        assert set(np.unique(damaged)) <= {0, 1, 2, 3}
        assert damaged.shape == (1, *shape)
        changed += int((damaged != prior).sum() > 0)
        assert drawn[0] or (damaged == prior).all()
    assert 10 < changed < 40
    assert prior.size == prod(shape)
