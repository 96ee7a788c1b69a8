"""Rotation and scaling: rates and ranges, SciPy's voxels, and image and label that move as one."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.kernels.warp_label import MIXED, uniform_bricks, vote_at
from data_loading.readers import StoredCase, open_volume
from tests.data_loading.augmentation_tools import always, draws, in_graph, on_host, random_block
from tests.data_loading.conftest import make_plan
from utils.errors import UserError
from utils.storage import write_array

SOLID = DrawContext(patch=(16, 20, 18), num_channels=2)
SLAB = DrawContext(patch=(4, 20, 18), num_channels=2)
SLICE = DrawContext(patch=(1, 20, 18), num_channels=2)
LONG = DrawContext(patch=(1, 40, 18), num_channels=1)
PART = RotateScale(largest_label=2)
NUMBER = 10_000
ORIGIN = np.zeros(3, np.int64)


def matrices(values: np.ndarray) -> np.ndarray:
    return values[:, 4:].reshape(-1, 3, 3).astype(np.float64)


def is_uniform(values: np.ndarray, low: float, high: float) -> bool:
    """Inside the range, reaching both ends, and half of it below the middle."""
    width = high - low
    is_inside = values.min() >= low - 1e-4 and values.max() <= high + 1e-4
    reaches = values.min() < low + 0.01 * width and values.max() > high - 0.01 * width
    return bool(
        is_inside and reaches and abs((values < low + width / 2).mean() - 0.5) < 2 / np.sqrt(values.size)
    )


# --- drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def test_four_patches_in_a_hundred_do_both_and_sixty_four_neither(context: DrawContext) -> None:
    values = draws(PART, NUMBER, context)
    volume = np.cbrt(np.linalg.det(matrices(values)))
    scaled = np.abs(volume - 1) > 1e-5
    norms = np.linalg.norm(matrices(values), axis=1)
    turned = np.abs(matrices(values) - np.eye(3) * norms[:, None]).max(axis=(1, 2)) > 1e-5
    for rate, expected in ((values[:, 0], 0.36), (scaled, 0.2), (turned, 0.2), (scaled & turned, 0.04)):
        assert abs(rate.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / NUMBER)
    np.testing.assert_array_equal(values[:, 0] > 0, scaled | turned)


def test_a_solid_patch_scales_alike_along_all_axes_from_0_7_to_1_4() -> None:
    every = matrices(draws(RotateScale(rotation_probability=0, scale_probability=1), NUMBER, SOLID))
    factors = every[:, [0, 1, 2], [0, 1, 2]]
    assert np.abs(factors - factors[:, :1]).max() < 1e-6
    assert is_uniform(factors[:, 0], 0.7, 1.4)


@pytest.mark.parametrize("context", [SLAB, SLICE], ids=["slab", "slice"])
def test_slabs_and_slices_keep_their_first_axis(context: DrawContext) -> None:
    every = matrices(draws(always(PART), 1000, context))
    np.testing.assert_array_equal(every[:, 0], np.tile([1.0, 0.0, 0.0], (1000, 1)))
    np.testing.assert_array_equal(every[:, 1:, 0], 0)
    assert is_uniform(np.sqrt(np.linalg.det(every[:, 1:, 1:])), 0.7, 1.4)


@pytest.mark.parametrize(("context", "degrees"), [(SLAB, 180), (SLICE, 180), (LONG, 15)])
def test_in_plane_every_angle_is_as_likely(context: DrawContext, degrees: float) -> None:
    """Elongated slices turn by 15 degrees at most."""
    every = matrices(draws(RotateScale(rotation_probability=1, scale_probability=0), NUMBER, context))
    assert is_uniform(np.rad2deg(np.arctan2(every[:, 2, 1], every[:, 1, 1])), -degrees, degrees)


def test_a_solid_patch_turns_by_30_degrees_about_each_axis() -> None:
    """The angles are read back from the product of the three rotations (depth, height, width axis)."""
    every = matrices(draws(RotateScale(rotation_probability=1, scale_probability=0), NUMBER, SOLID))
    np.testing.assert_allclose(
        every @ every.transpose(0, 2, 1), np.tile(np.eye(3), (NUMBER, 1, 1)), atol=1e-6
    )
    middle = np.arcsin(np.clip(-every[:, 0, 2], -1, 1))
    first = np.arctan2(-every[:, 1, 2], every[:, 2, 2])
    last = np.arctan2(-every[:, 0, 1], every[:, 0, 0])
    angles = np.rad2deg([first, middle, last])
    assert all(is_uniform(own, -30, 30) for own in angles)
    assert np.abs(np.corrcoef(angles) - np.eye(3)).max() < 0.05


def test_a_patch_that_stays_needs_no_more_than_itself() -> None:
    values = draws(PART, 500, SOLID)
    shapes = {PART.source_shape(one, SOLID.patch) for one in values if one[0] == 0}
    assert shapes == {SOLID.patch}
    shrinks = RotateScale(rotation_probability=0, scale_probability=1, high=1.0)
    assert {shrinks.source_shape(one, SOLID.patch) for one in draws(shrinks, 50, SOLID)} == {SOLID.patch}


@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def test_the_block_holds_every_corner_and_little_more(context: DrawContext) -> None:
    for one in draws(always(PART), 200, context):
        shape = np.array(PART.source_shape(one, context.patch))
        half = (np.array(context.patch) - 1) / 2
        corners = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1) * half[:, None]
        reach = np.abs(matrices(one[None])[0] @ corners).max(axis=1)
        assert (reach <= (shape - 1) / 2 + 1e-4).all()
        assert (shape <= np.maximum(2 * reach + 4, context.patch)).all()


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (-1.0, 1.4), (0.0, 1.4), (0.7, float("nan"))])
def test_a_range_of_scales_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match=f"rotate_scale: low and high .* low={low}, high={high}"):
        RotateScale(low=low, high=high)


@pytest.mark.parametrize("option", ["degrees=-1", "plane_degrees=181", "degrees=nan", "largest_label=-1"])
def test_options_outside_their_range_are_refused_by_name(option: str) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(UserError, match=rf"rotate_scale: {name} should be in 0\.\.\d+, got {value}"):
        AUGMENTATIONS.build(f"rotate_scale:{option}")


def test_a_plan_raises_the_largest_label_and_never_lowers_it() -> None:
    plan = make_plan(SOLID.patch, 1)
    assert RotateScale().for_plan(plan).largest_label == 2
    assert RotateScale(largest_label=7).for_plan(plan).largest_label == 7


def test_a_block_smaller_than_the_patch_is_refused_where_it_would_be_cut() -> None:
    one = draws(RotateScale(rotation_probability=0, scale_probability=0), 1, SOLID)[0]
    image, label = random_block((16, 18, 18), 2, seed=0)
    with pytest.raises(ValueError, match="rotate_scale: the block should hold"):
        PART.compute(image, label, one)


# --- moved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [in_graph, on_host], ids=["graph", "host"])
@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def test_voxels_are_those_of_scipy(run, context: DrawContext) -> None:
    drawn = list(draws(always(PART), 6, context))
    made = [random_block(PART.source_shape(one, context.patch), 2, seed) for seed, one in enumerate(drawn)]
    images, labels = run(PART, drawn, ([image for image, _ in made], [label for _, label in made]))
    for one, (image, label), moved, moved_label in zip(drawn, made, images, labels, strict=True):
        matrix = matrices(one[None])[0]
        origin = (np.array(label.shape[1:]) - 1) / 2 - matrix @ ((np.array(context.patch) - 1) / 2)
        settings = {"offset": origin, "output_shape": context.patch, "order": 1, "mode": "grid-constant"}
        for channel, own in zip(image, moved, strict=True):
            expected = ndimage.affine_transform(channel.astype(np.float64), matrix, cval=0.0, **settings)
            np.testing.assert_allclose(own, expected, atol=2e-3)
        shares = np.stack(
            [
                ndimage.affine_transform(
                    (label[0] == value).astype(float), matrix, cval=value == -1, **settings
                )
                for value in range(-1, 3)
            ]
        )
        best = np.sort(shares, axis=0)
        clear = best[-1] - best[-2] > 1e-3
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(moved_label[0][clear], (shares.argmax(axis=0) - 1)[clear])


@pytest.mark.parametrize("run", [in_graph, on_host], ids=["graph", "host"])
def test_image_and_label_move_together_to_half_a_voxel(run) -> None:
    """A ball's centre of mass in the image, where image = f(label), and in the label."""
    context = DrawContext(patch=(24, 28, 26), num_channels=1)
    drawn = list(draws(always(RotateScale(largest_label=1)), 10, context))
    images, labels = [], []
    for place, one in enumerate(drawn):
        shape = PART.source_shape(one, context.patch)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        centre = (np.array(shape) - 1) / 2 + np.random.default_rng(place).uniform(-4, 4, 3)
        ball = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < 30
        labels.append(ball[None].astype(np.int16))
        images.append(100 * labels[-1].astype(np.float32))
    moved, moved_labels = run(RotateScale(largest_label=1), drawn, (images, labels))
    for image, label in zip(moved, moved_labels, strict=True):
        of_image, of_label = ndimage.center_of_mass(image[0]), ndimage.center_of_mass(label[0] == 1)
        assert np.abs(np.subtract(of_image, of_label)).max() < 0.2
        np.testing.assert_array_equal(image[0] > 50, label[0] == 1)


@pytest.mark.parametrize("run", [in_graph, on_host], ids=["graph", "host"])
def test_beyond_the_block_the_image_is_0_and_the_label_outside(run) -> None:
    one = draws(RotateScale(rotation_probability=0, scale_probability=1, low=1.4, high=1.4), 1, SOLID)[0]
    image, label = np.ones((1, *SOLID.patch), np.float32), np.ones((1, *SOLID.patch), np.int16)
    (moved,), (moved_label,) = run(PART, [one], ([image], [label]))  # a block of the patch is too small
    assert moved[0, 0, 0, 0] == 0
    assert moved_label[0, 0, 0, 0] == -1
    assert moved[0, 8, 10, 9] == pytest.approx(1.0, abs=1e-5)
    assert moved_label[0, 8, 10, 9] == 1


def test_nearest_labels_are_dalis_nearest() -> None:
    drawn = list(draws(always(PART), 4, SOLID))
    made = [random_block(PART.source_shape(one, SOLID.patch), 1, seed) for seed, one in enumerate(drawn)]
    inputs = [image for image, _ in made], [label for _, label in made]
    nearest = RotateScale(nearest=True)
    for host, graph in zip(
        on_host(nearest, drawn, inputs)[1], in_graph(nearest, drawn, inputs)[1], strict=True
    ):
        assert (host == graph).mean() > 0.999  # a position half-way between two voxels may go either way
    voted = on_host(PART, drawn, inputs)[1]
    assert any(
        (one != other).any() for one, other in zip(voted, on_host(nearest, drawn, inputs)[1], strict=True)
    )


# --- the label's kernel ------------------------------------------------------------------------------------


def test_bricks_are_uniform_exactly_where_no_neighbour_differs() -> None:
    label = np.zeros((30, 17, 20), np.int16)
    label[16:, 8:, :] = 3
    label[5, 5, 5] = 1
    bricks = uniform_bricks(label, np.zeros(3, np.int64), np.array(label.shape))
    assert bricks.shape == (4, 3, 3)
    for i, j, k in np.ndindex(bricks.shape):
        own = label[8 * i : 8 * i + 9, 8 * j : 8 * j + 9, 8 * k : 8 * k + 9]
        if bricks[i, j, k] != MIXED:
            assert set(np.unique(own)) == {bricks[i, j, k]}
        else:  # the neighbour bricks as a whole, which is at most one brick more than needed
            assert len(np.unique(label[8 * i : 8 * i + 16, 8 * j : 8 * j + 16, 8 * k : 8 * k + 16])) > 1


def position(depth: float, height: float, width: float) -> tuple[np.float32, ...]:
    return np.float32(depth), np.float32(height), np.float32(width)


def test_ties_go_to_the_nearest_voxel() -> None:
    scratch = np.empty((2, 8), np.float32)
    cell = np.array([[[5, 2], [5, 2]], [[5, 2], [5, 2]]], np.int16)
    assert vote_at(cell, position(0.2, 0.2, 0.499), ORIGIN, scratch) == 5
    assert vote_at(cell, position(0.2, 0.2, 0.501), ORIGIN, scratch) == 2
    odd = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.int16)
    assert vote_at(odd, position(0.9, 0.1, 0.9), ORIGIN, scratch) == 6


# --- straight from the stored volume -----------------------------------------------------------------------


@pytest.fixture(params=["float32", "float16"])
def stored_case(request: pytest.FixtureRequest, tmp_path: Path) -> StoredCase:
    image, label = random_block((30, 34, 32), 2, seed=5)
    write_array(tmp_path / "a_x.npy", image.astype(request.param))
    write_array(tmp_path / "a_y.npy", label)
    volumes = [open_volume(tmp_path / name, in_memory=False) for name in ("a_x.npy", "a_y.npy")]
    return StoredCase(image=volumes[0], label=volumes[1], prior=None)


STARTS = [
    *[(7, 7, 7), (0, 0, 0), (14, 14, 14), (-6, 9, 20)],
    *[(25, -10, 3), (-9, -12, -11), (200, 0, 0), (0, 0, -90)],
]


@pytest.mark.parametrize("context", [SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
@pytest.mark.parametrize("part", [PART, RotateScale(nearest=True)], ids=["linear", "nearest"])
def test_reading_is_the_same_as_computing_from_a_block(
    stored_case: StoredCase, context: DrawContext, part: RotateScale
) -> None:
    """Windows inside, hanging over every border, and beside the volume."""
    drawn = draws(always(part), 6 * len(STARTS), context)
    for place, one in enumerate(drawn):
        start = STARTS[place % len(STARTS)]
        wide = part.source_shape(one, context.patch)
        z, y, x = (s - (w - p) // 2 for s, w, p in zip(start, wide, context.patch, strict=True))
        block = stored_case.image.single_precision_block((z, y, x), wide)
        image, label = part.compute(block, stored_case.label_block((z, y, x), wide), one)
        read, read_label = part.read(stored_case, start, one)
        assert (read.shape, read_label.shape) == ((2, *context.patch), (1, *context.patch))
        np.testing.assert_allclose(read, image, atol=1e-3)
        assert (read_label != label).mean() < 0.002  # a share of half a voxel may round either way


def test_reading_a_case_without_a_mask_says_outside_everywhere(stored_case: StoredCase) -> None:
    maskless = StoredCase(image=stored_case.image, label=None, prior=stored_case.label)
    one = draws(always(PART), 1, SOLID)[0]
    _, maps = PART.read(maskless, (7, 7, 7), one)
    assert maps.shape == (2, *SOLID.patch)
    assert (maps[0] == -1).all()
    np.testing.assert_array_equal(maps[1], PART.read(stored_case, (7, 7, 7), one)[1][0])
