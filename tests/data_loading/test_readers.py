"""Blocks of mapped volumes: the right voxels, no more than those, and errors that name the file."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_loading import readers
from data_loading.readers import OpenCases, StoredVolume, open_volume
from utils.contracts import Shape
from utils.errors import DatasetError
from utils.storage import read_array, write_array

VOLUME = np.arange(2 * 5 * 6 * 7, dtype=np.float32).reshape(2, 5, 6, 7)
BLOCKS: list[tuple[Shape, Shape]] = [
    ((1, 2, 3), (3, 4, 2)),
    ((0, 0, 0), (5, 6, 7)),
    ((-1, 0, 5), (3, 6, 4)),
    ((-2, -3, -4), (9, 12, 15)),
    ((5, 0, 0), (2, 2, 2)),
    ((-4, 2, 2), (2, 2, 2)),
]


@pytest.fixture(params=["float32", "float16"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StoredVolume:
    write_array(tmp_path / "a_x.npy", VOLUME.astype(request.param))
    return open_volume(tmp_path / "a_x.npy", in_memory=False)


def padded(start: Shape, shape: Shape, fill: float) -> np.ndarray:
    """The block, cut from a volume with a wide rim."""
    rim = 20
    wide = np.pad(VOLUME, ((0, 0), *[(rim, rim)] * 3), constant_values=fill)
    d, h, w = (slice(first + rim, first + rim + size) for first, size in zip(start, shape, strict=True))
    return wide[:, d, h, w]


@pytest.mark.parametrize(("start", "shape"), BLOCKS)
def test_a_block_holds_the_stored_voxels_and_the_fill_beyond_the_border(
    stored: StoredVolume, start: Shape, shape: Shape
) -> None:
    block = stored.block(start, shape, fill=-9.0)
    assert block.dtype == stored.voxels.dtype
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block, padded(start, shape, -9.0))


@pytest.mark.parametrize(("start", "shape"), BLOCKS)
def test_single_precision_is_the_same_number(stored: StoredVolume, start: Shape, shape: Shape) -> None:
    block = stored.single_precision_block(start, shape)
    assert block.dtype == np.float32
    np.testing.assert_array_equal(block, padded(start, shape, 0.0))


def test_every_half_is_converted_as_numpy_does(tmp_path: Path) -> None:
    """All 65536 patterns: subnormal, infinite and undefined ones among them."""
    bits = np.arange(65536, dtype=np.uint16)
    write_array(tmp_path / "all_x.npy", bits.view(np.float16).reshape(1, 16, 64, 64))
    block = open_volume(tmp_path / "all_x.npy", in_memory=False).single_precision_block(
        (0, 0, 0), (16, 64, 64)
    )
    np.testing.assert_array_equal(block.ravel(), bits.view(np.float16).astype(np.float32))


def test_a_block_is_a_copy_that_may_be_changed(stored: StoredVolume) -> None:
    for block in (stored.block((0, 0, 0), (5, 6, 7), fill=0.0), stored.whole()):
        block[:] = 0
    np.testing.assert_array_equal(stored.whole(), VOLUME)


def test_the_pages_of_a_block_are_asked_for_and_no_others(tmp_path: Path, monkeypatch) -> None:
    """Rows of 4 KiB or more apart are asked for one by one, closer ones as one stretch per slice."""
    for width, per_slice in ((64, 1), (5000, 10)):
        asked: list[tuple[int, int]] = []
        write_array(tmp_path / "a_x.npy", np.zeros((1, 4, 20, width), np.float16))
        volume = open_volume(tmp_path / "a_x.npy", in_memory=False)

        class Spy:
            """Counts what the mapping is asked for."""

            def __len__(self) -> int:
                return len(volume.mapping)  # noqa: B023

            def size(self) -> int:
                return volume.mapping.size()  # noqa: B023

            def madvise(self, option: int, start: int, length: int) -> None:
                assert option == mmap.MADV_WILLNEED
                asked.append((start, start + length))  # noqa: B023

        spied = StoredVolume(
            path=volume.path,
            voxels=volume.voxels,
            mapping=Spy(),  # pyright: ignore[reportArgumentType]
            first_byte=volume.first_byte,
            in_memory=False,
        )
        spied.block((1, 5, 10), (2, 10, 30), fill=0.0)
        assert len(asked) == 2 * per_slice
        pages = {page for start, stop in asked for page in range(start // 4096, -(-stop // 4096))}
        touched = set()
        for depth in (1, 2):
            for height in range(5, 15):
                first = 128 + 2 * ((depth * 20 + height) * width + 10)
                touched |= {first // 4096, (first + 59) // 4096}
        assert touched <= pages
        assert len(pages) <= 1.1 * len(touched)


def test_a_file_that_shrinks_is_an_error_with_its_name_not_a_crash(tmp_path: Path) -> None:
    write_array(tmp_path / "a_x.npy", np.zeros((1, 40, 40, 40), np.float32))
    volume = open_volume(tmp_path / "a_x.npy", in_memory=False)
    with (tmp_path / "a_x.npy").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(DatasetError, match="a_x.npy became shorter"):
        volume.block((30, 30, 30), (4, 4, 4), fill=0.0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "no array"])
def test_an_unreadable_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a_x.npy"
    write_array(path, VOLUME)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500] if damage == "truncated" else b"nothing")
    with pytest.raises(DatasetError, match="a_x.npy"):
        open_volume(path, in_memory=False)


# --- open files --------------------------------------------------------------------------------------------


def test_few_files_are_open_at_a_time_and_none_is_mistaken(prepared) -> None:
    cases = OpenCases(prepared.entries, limit=2)
    for place in (0, 1, 2, 0, 3, 4, 4, 1):
        case = cases[place]
        shape = prepared.entries[place].shape
        np.testing.assert_array_equal(case.image.whole(), read_array(prepared.cases[place].image))
        expected = read_array(prepared.cases[place].label)
        np.testing.assert_array_equal(case.label_block((0, 0, 0), shape), expected)
        assert len(cases) <= 2


def test_a_case_in_use_is_not_opened_again(prepared, monkeypatch) -> None:
    opened = []
    honest = readers.open_case

    def spy(entry: Any, *, in_memory: bool) -> Any:
        opened.append(entry.case.case_id)
        return honest(entry, in_memory=in_memory)

    monkeypatch.setattr(readers, "open_case", spy)
    cases = OpenCases(prepared.entries, limit=2)
    for place in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which was used longest ago
        cases[place]
    assert opened == ["case_00", "case_01", "case_02", "case_01"]
