"""The answer of a cascade's previous stage on the grid of the next."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data_preprocessing.previous_stage import cascade_plan, prior_label, with_prior
from data_preprocessing.restore import restore_label
from tests.data_loading.conftest import make_footprint
from utils.contracts import Plan
from utils.errors import DatasetError

FINE = make_footprint((8, 12, 16))
COARSE = replace(FINE, planned_shape=(4, 6, 8))


def one_hot(label: np.ndarray, num_labels: int = 3) -> np.ndarray:
    return np.stack([label == value for value in range(num_labels)]).astype(np.float32)


def blocks() -> np.ndarray:
    """(4, 6, 8) of slabs of the labels 0, 1 and 2: flat borders are interpolated exactly."""
    label = np.zeros((4, 6, 8), np.uint8)
    label[:, :, 2:6], label[:, :, 6:] = 1, 2
    return label


def test_a_coarse_label_covers_the_same_place_of_the_fine_grid() -> None:
    prior = prior_label(one_hot(blocks()), COARSE, FINE)
    assert prior.dtype == np.int16
    expected = blocks().repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(prior[0], expected)


def test_where_the_fine_grid_is_the_scanners_it_is_the_restored_label() -> None:
    scores = np.random.default_rng(0).random((3, 4, 6, 8), np.float32)
    restored = restore_label(scores, COARSE)
    np.testing.assert_array_equal(prior_label(scores, COARSE, FINE)[0], restored.transpose(2, 1, 0))


def test_a_grid_finer_than_the_scanners_is_reached_from_the_coarse_one_alone() -> None:
    finer = replace(FINE, planned_shape=(16, 24, 32))
    prior = prior_label(one_hot(blocks()), COARSE, finer)
    expected = blocks().repeat(4, axis=0).repeat(4, axis=1).repeat(4, axis=2)
    assert prior.shape == (1, 16, 24, 32)
    np.testing.assert_array_equal(prior[0], expected)


def test_padding_of_the_fine_grid_is_background() -> None:
    padded = replace(FINE, padding_before=(1, 0, 2), padding_after=(0, 3, 0))
    prior = prior_label(one_hot(np.ones((4, 6, 8), np.uint8)), COARSE, padded)
    assert prior.shape == (1, 9, 15, 18)
    assert (prior == 1).sum() == 8 * 12 * 16
    assert not prior[0, 0].any()
    assert not prior[0, :, 12:].any()
    assert not prior[0, :, :, :2].any()


def test_regions_are_painted_in_their_order() -> None:
    scores = np.zeros((2, 4, 6, 8), np.float32)
    scores[0], scores[1, :, :3] = 0.9, 0.8
    prior = prior_label(scores, COARSE, FINE, regions_class_order=(1, 2))
    assert set(np.unique(prior[0, :, :5])) == {2}
    assert set(np.unique(prior[0, :, 7:])) == {1}


def test_another_crop_is_refused_by_name() -> None:
    with pytest.raises(DatasetError, match="crop_start"):
        prior_label(one_hot(blocks()), replace(COARSE, crop_start=(1, 0, 0)), FINE)


def test_each_label_of_the_previous_stage_gets_a_channel_behind_the_image() -> None:
    image = np.full((2, 1, 1, 4), 7, np.float16)
    joined = with_prior(image, np.array([0, 1, 2, 1], np.int16).reshape(1, 1, 1, 4), 2)
    assert joined.dtype == np.float32
    assert joined[:, 0, 0].tolist() == [[7] * 4, [7] * 4, [0, 1, 0, 1], [0, 0, 1, 0]]


def test_a_cascades_plan_is_that_of_full_resolution_with_the_labels_as_channels(
    make_plan: Callable[..., Plan],
) -> None:
    plan = make_plan()
    cascade = cascade_plan(plan)
    assert (cascade.configuration, cascade.prior_labels) == ("3d_cascade_fullres", plan.num_labels - 1)
    assert replace(cascade, configuration=plan.configuration, prior_labels=0) == plan
