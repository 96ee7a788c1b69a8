"""Mirroring: rates, NumPy's flips in the graph and on the host, and labels that know left from right."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.mirror import Mirror
from data_loading.kernels.mirror import exchange, flip
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from utils.contracts import Plan, Shape
from utils.errors import UserError

SOLID = DrawContext(patch=(8, 9, 7), num_channels=2)
SLICE = DrawContext(patch=(1, 9, 7), num_channels=2)
NUMBER = 10_000


def test_each_axis_flips_half_the_time_whatever_the_others_do() -> None:
    values = draws(Mirror(), NUMBER, SOLID)
    np.testing.assert_allclose(values[:, 1:].mean(axis=0), 0.5, atol=0.02)
    assert np.abs(np.corrcoef(values[:, 1:].T) - np.eye(3)).max() < 0.05
    np.testing.assert_array_equal(values[:, 0], values[:, 1:].max(axis=1))


def test_the_depth_of_one_slice_is_not_flipped() -> None:
    assert draws(Mirror(), 1000, SLICE)[:, 1].max() == 0


def test_only_the_axes_asked_for_flip() -> None:
    part = AUGMENTATIONS.build("mirror:axes=1+2,probability=1")
    np.testing.assert_array_equal(draws(part, 10, SOLID), np.tile([1, 0, 1, 1], (10, 1)))


def test_the_axes_left_out_do_not_change_the_draws_of_the_others() -> None:
    every, some = draws(Mirror(), 100, SOLID, seed=3), draws(Mirror(axes=(0, 2)), 100, SOLID, seed=3)
    np.testing.assert_array_equal(every[:, [1, 3]], some[:, [1, 3]])


def test_a_fourth_axis_is_refused() -> None:
    with pytest.raises(UserError, match="some of 0"):
        Mirror(axes=(1, 3))


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("shape", [(8, 9, 7), (5, 4, 6), (1, 3, 2), (1, 1, 5), (1, 1, 1)])
def test_every_combination_is_numpys_flip(run, shape: Shape) -> None:  # noqa: ANN001
    drawn = [np.array([1, *flips], np.float32) for flips in product((0, 1), repeat=3)]
    made = [random_block(shape, 2, seed) for seed in range(8)]
    inputs = [image for image, _ in made], [np.concatenate([label, label + 1]) for _, label in made]
    images, labels = run(Mirror(), drawn, inputs)
    for place, values in enumerate(drawn):
        axes = tuple(1 + axis for axis in range(3) if values[1 + axis])
        np.testing.assert_array_equal(images[place], np.flip(inputs[0][place], axes))
        np.testing.assert_array_equal(labels[place], np.flip(inputs[1][place], axes))


def test_flipping_twice_gives_every_bit_back() -> None:
    volume = np.random.default_rng(0).normal(size=(6, 5, 9)).astype(np.float32)
    moved = volume.copy()
    for _ in range(2):
        flip(moved, np.array([True, False, True]))
    np.testing.assert_array_equal(moved, volume)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_a_pair_change_places_where_their_axis_flips(run, axis: int) -> None:  # noqa: ANN001
    part = AUGMENTATIONS.build(f"mirror:swap_axis={axis},pairs=2+5+4+3")
    drawn = [np.array([1, *flips], np.float32) for flips in product((0, 1), repeat=3)]
    random = np.random.default_rng(0)
    inputs = (
        [random.normal(size=(1, 3, 4, 5)).astype(np.float32) for _ in drawn],
        [random.integers(-1, 8, (2, 3, 4, 5)).astype(np.int16) for _ in drawn],
    )
    images, labels = run(part, drawn, inputs)
    partner = np.array([0, 1, 5, 4, 3, 2, 6, 7, -1])  # the last for -1
    for place, values in enumerate(drawn):
        axes = tuple(1 + number for number in range(3) if values[1 + number])
        expected = np.flip(inputs[1][place], axes)
        expected = partner[expected] if values[1 + axis] else expected
        np.testing.assert_array_equal(labels[place], expected)
        np.testing.assert_array_equal(images[place], np.flip(inputs[0][place], axes))


def test_the_plan_gives_the_pairs_and_the_axis_from_left_to_right(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(left_right_pairs=((1, 2),), left_right="swap", axis_order=(2, 0, 1))
    assert Mirror().for_plan(plan) == Mirror(swap_axis=0, pairs=(1, 2))
    plain = make_plan(left_right_pairs=((1, 2),), left_right="plain")
    assert Mirror().for_plan(plain) == Mirror().for_plan(make_plan()) == Mirror()


def test_an_axis_that_is_off_does_not_flip(make_plan: Callable[..., Plan]) -> None:
    part = Mirror(probability=1.0).for_plan(make_plan(left_right="off", axis_order=(1, 0, 2)))
    np.testing.assert_array_equal(draws(part, 3, SOLID), np.tile([1, 1, 1, 0], (3, 1)))


@pytest.mark.parametrize("pairs", ["1+2+3", "1+1", "0+1", "1+2+2+3"])
def test_odd_pairs_are_refused(pairs: str) -> None:
    with pytest.raises(UserError, match="pairs of different labels above 0"):
        AUGMENTATIONS.build(f"mirror:pairs={pairs}")


def test_labels_outside_the_table_stay() -> None:
    volume = np.array([[[-1, 0, 1, 2, 9]]], np.int16)
    exchange(volume, np.array([0, 2, 1], np.int16))
    assert volume.ravel().tolist() == [-1, 0, 2, 1, 9]
