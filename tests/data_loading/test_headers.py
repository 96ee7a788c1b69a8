"""Headers of .npy files, and the files that are none."""

from pathlib import Path

import numpy as np
import pytest

from data_loading.headers import read_header
from utils.errors import DatasetError
from utils.storage import write_array

ARRAY = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)


def test_a_header_tells_type_and_shape(tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", ARRAY)
    header = read_header(tmp_path / "a.npy")
    assert (header.dtype, header.shape) == (np.float32, (1, 2, 3, 4))
    assert str(header) == "float32 (1, 2, 3, 4)"


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_later_formats_are_refused(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, ARRAY, version=version)
    with pytest.raises(DatasetError, match=f"a.npy has .npy format {version[0]}.0; only format 1.0"):
        read_header(tmp_path / "a.npy")


def test_a_file_may_be_longer_than_its_header_says_but_not_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_array(path, ARRAY)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    assert read_header(path).shape == ARRAY.shape
    path.write_bytes(whole[:-1])
    with pytest.raises(
        DatasetError, match=f"header promises {len(whole)} bytes, the file has {len(whole) - 1}"
    ):
        read_header(path)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (ARRAY.astype(">f4"), "is big-endian"),
        (np.asfortranarray(ARRAY), "is in Fortran order"),
        (np.array([None, "text"], object), "holds pickled Python objects"),
    ],
)
def test_what_the_reader_cannot_map_is_refused(tmp_path: Path, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DatasetError, match=f"a.npy {told}"):
        read_header(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip archive", b"\x93NUMPY\x01\x00\x10\x00 no header    "]
)
def test_another_file_is_no_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DatasetError, match="a.npy is not a .npy file"):
        read_header(tmp_path / "a.npy")


def test_a_header_that_ends_early_is_no_array(tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", ARRAY)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:40])
    with pytest.raises(DatasetError, match="a.npy is not a .npy file"):
        read_header(tmp_path / "a.npy")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="a.npy does not exist"):
        read_header(tmp_path / "a.npy")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_header(tmp_path)
