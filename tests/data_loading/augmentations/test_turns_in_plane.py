"""Turns that keep the planes in their place: the same voxels as SciPy's, on the fast way."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_loading.augmentations.base import DrawContext
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.kernels.warp import keeps_planes, lies_inside, position_limits, row_limits
from data_loading.readers import StoredCase, open_volume
from tests.data_loading.augmentation_tools import always, draws, random_block
from utils.contracts import Shape
from utils.storage import write_array

SLICE = DrawContext(patch=(1, 20, 18), num_channels=1)
PART = RotateScale(largest_label=2)
LABELS = range(-1, 3)


def turned_in_plane(origin: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and origin of a turn by 90 degrees whose positions lie well inside in plane."""
    return np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32), np.array([origin, 15, 2], np.float32)


@pytest.mark.parametrize(("depth", "plane"), [(1, 0), (9, 0), (9, 8)], ids=["only", "first", "last"])
def test_a_turn_in_plane_needs_no_look_at_the_planes_beside_its_own(depth: int, plane: int) -> None:
    """All of it takes the fast way, with or without another plane above."""
    matrix, origin = turned_in_plane(1.0)
    base = np.array([plane - 1, 0, 0])
    assert keeps_planes(matrix, origin)
    limits = position_limits((depth, 20, 20), base, True)  # noqa: FBT003 - a compiled function
    assert lies_inside((1, 12, 12), matrix, origin, limits[0])
    assert row_limits(origin, matrix, limits, (0, 5, 12)) == (0, 0, 12, 12)


@pytest.mark.parametrize("plane", [-1, 9])
def test_planes_beside_the_volume_are_not_touched(plane: int) -> None:
    matrix, origin = turned_in_plane(1.0)
    limits = position_limits((9, 20, 20), np.array([plane - 1, 0, 0]), True)  # noqa: FBT003
    assert row_limits(origin, matrix, limits, (0, 5, 12)) == (12, 12, 12, 12)


def test_planes_are_not_kept_between_two_planes_nor_where_they_tilt() -> None:
    matrix, _ = turned_in_plane(1.0)
    assert not keeps_planes(matrix, np.array([1.5, 0, 0], np.float32))
    for place in range(3):
        other = matrix.copy()
        other[0, place] += np.float32(1e-6)
        assert not keeps_planes(other, np.ones(3, np.float32))


def scipy_warp(volume: np.ndarray, matrix: np.ndarray, start: Shape, outside: float = 0.0) -> np.ndarray:
    """The turned slice whose unturned corner is `start`."""
    middle = (np.array(SLICE.patch) - 1) / 2
    settings = {"offset": start + middle - matrix @ middle, "output_shape": SLICE.patch, "cval": outside}
    return ndimage.affine_transform(volume.astype(float), matrix, order=1, mode="grid-constant", **settings)


@pytest.mark.parametrize("depth", [1, 4])
def test_single_slices_are_read_as_scipy_sees_them(tmp_path: Path, depth: int) -> None:
    """Every slice of a volume, of one slice or more, and the places before and behind it."""
    image, label = random_block((depth, 40, 44), 1, seed=2)
    write_array(tmp_path / "b_x.npy", image)
    write_array(tmp_path / "b_y.npy", label)
    volumes = [open_volume(tmp_path / name, in_memory=False) for name in ("b_x.npy", "b_y.npy")]
    case = StoredCase(image=volumes[0], label=volumes[1], prior=None)
    for number, one in enumerate(draws(always(PART), 4 * (depth + 2), SLICE)):
        start = (number % (depth + 2) - 1, 10, 12)
        matrix = one[4:].reshape(3, 3).astype(np.float64)
        expected = scipy_warp(image[0], matrix, start)
        read, maps = PART.read(case, start, one)
        np.testing.assert_allclose(read[0], expected, atol=2e-3)
        shares = np.stack(
            [scipy_warp(label[0] == value, matrix, start, value == -1) for value in range(-1, 3)]
        )
        best = np.sort(shares, axis=0)
        clear = best[-1] - best[-2] > 1e-3
        np.testing.assert_array_equal(maps[0][clear], (shares.argmax(axis=0) - 1)[clear])
