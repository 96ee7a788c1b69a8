"""Patches of volumes that 32 bits cannot address, in files of holes: gigabytes long, but empty."""

from pathlib import Path

import numpy as np
import pytest

from data_loading.readers import StoredVolume, open_volume
from utils.contracts import OUTSIDE_LABEL, Shape

CASES = [((1, 1500, 1500, 1500), (4, 5, 6)), ((3, 1, 30000, 30000), (1, 5, 6))]


def write_sparse(path: Path, shape: tuple[int, ...], corner: np.ndarray) -> None:
    """A float16 array of zeros with `corner` in its last voxels; only those lie on the disk."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=corner.dtype, shape=shape)
    array[tuple(slice(size - edge, size) for size, edge in zip(shape, corner.shape, strict=True))] = corner
    array.flush()


@pytest.fixture(params=CASES, ids=["volume", "image"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[StoredVolume, np.ndarray]:
    """The volume, and what its far corner holds."""
    shape, edges = request.param
    values = np.arange(1, shape[0] * np.prod(edges) + 1, dtype=np.float16).reshape(shape[0], *edges)
    write_sparse(tmp_path / "a_x.npy", shape, values)
    status = (tmp_path / "a_x.npy").stat()
    assert status.st_size > 2**32
    if status.st_blocks * 512 > 2**24:
        pytest.skip("this file system keeps no files with holes")
    return open_volume(tmp_path / "a_x.npy", in_memory=False), values


def corner_of(volume: StoredVolume, edges: tuple[int, ...]) -> Shape:
    d, h, w = (size - edge for size, edge in zip(volume.voxels.shape[1:], edges, strict=True))
    return d, h, w


def test_the_last_block_of_a_large_volume_is_read(far: tuple[StoredVolume, np.ndarray]) -> None:
    volume, values = far
    start, (d, h, w) = corner_of(volume, values.shape[1:]), values.shape[1:]
    np.testing.assert_array_equal(volume.block(start, (d, h, w), fill=-1.0), values)
    single = volume.single_precision_block(start, (d, h, w))
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, values)


def test_a_block_over_the_far_border_is_filled_behind_it(far: tuple[StoredVolume, np.ndarray]) -> None:
    volume, values = far
    _, d, h, w = values.shape
    start = corner_of(volume, (1, 2, 3))
    block = volume.block(start, (1, 4, 5), fill=-1.0)
    np.testing.assert_array_equal(block[:, :, :2, :3], values[:, d - 1 :, h - 2 :, w - 3 :])
    assert (block[:, :, 2:] == -1).all()
    assert (block[..., 3:] == -1).all()
    single = volume.single_precision_block(start, (1, 4, 5))
    np.testing.assert_array_equal(single[:, :, :2, :3], values[:, d - 1 :, h - 2 :, w - 3 :])
    inside = volume.block_inside(start, (1, 4, 5))
    assert (inside == 0).sum() == 6
    assert (inside == OUTSIDE_LABEL).sum() == 14


def test_the_first_block_of_a_large_volume_is_empty(far: tuple[StoredVolume, np.ndarray]) -> None:
    volume, _ = far
    assert not volume.block((0, 0, 0), (1, 8, 8), fill=-1.0).any()
