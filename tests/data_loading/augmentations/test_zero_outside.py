"""Zero outside the mask: the voxels that are cleared, and the channels that a plan chooses."""

from dataclasses import replace

import numpy as np
import pytest

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.zero_outside import ZeroOutside
from tests.data_loading.augmentation_tools import draws, in_graph, on_host, random_block
from tests.data_loading.conftest import make_plan
from utils.errors import UserError

CONTEXT = DrawContext(patch=(6, 8, 7), num_channels=3)
ALWAYS = np.ones(1, np.float32)


@pytest.mark.parametrize("run", [in_graph, on_host])
@pytest.mark.parametrize("channels", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_the_chosen_channels_are_zero_where_the_first_map_says_outside(run, channels) -> None:  # noqa: ANN001
    image, label = random_block(CONTEXT.patch, 3, seed=0)
    image += 5
    maps = np.concatenate([label, np.full_like(label, -1)])
    assert 0 < (label == -1).mean() < 1
    images, labels = run(ZeroOutside(channels=channels), [ALWAYS], ([image], [maps]))
    for channel in range(3):
        expected = np.where(label[0] == -1, 0, image[channel]) if channel in channels else image[channel]
        np.testing.assert_array_equal(images[0][channel], expected)
    np.testing.assert_array_equal(labels[0], maps)


@pytest.mark.parametrize("run", [in_graph, on_host])
def test_without_channels_or_a_plan_nothing_happens(run) -> None:  # noqa: ANN001
    part = ZeroOutside(channels=())
    image, label = random_block(CONTEXT.patch, 3, seed=0)
    drawn = draws(part, 1, CONTEXT)
    np.testing.assert_array_equal(drawn, [[0]])
    images, _ = run(part, list(drawn), ([image], [label]))
    np.testing.assert_array_equal(images[0], image)


def test_it_is_done_to_every_sample() -> None:
    np.testing.assert_array_equal(draws(ZeroOutside(channels=(0,)), 100, CONTEXT), np.ones((100, 1)))


def test_a_plan_chooses_the_channels_that_were_normalised_inside_the_mask() -> None:
    plan = make_plan((6, 8, 7), 3)
    assert ZeroOutside().for_plan(plan).channels == ()
    assert ZeroOutside().for_plan(replace(plan, uses_mask=(True, False, True))).channels == (0, 2)


def test_a_plan_keeps_the_channels_that_a_user_named() -> None:
    plan = replace(make_plan((6, 8, 7), 3), uses_mask=(True, False, True))
    assert ZeroOutside(channels=(1,)).for_plan(plan).channels == (1,)


def test_channels_that_the_plan_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"zero_outside: channels .* below 3, .* got \(0, 3\)"):
        ZeroOutside(channels=(0, 3)).for_plan(make_plan((6, 8, 7), 3))
    with pytest.raises(UserError, match=r"zero_outside: channels .* got \(-1,\)"):
        ZeroOutside(channels=(-1,))


def test_channels_can_be_named_in_a_recipe() -> None:
    assert AUGMENTATIONS.build("zero_outside:channels=0+2") == ZeroOutside(channels=(0, 2))
