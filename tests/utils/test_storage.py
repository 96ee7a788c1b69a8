"""Records and arrays survive the disk, and a crash never leaves half a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from utils.contracts import Stage
from utils.errors import DatasetError, StorageFault
from utils.storage import (
    atomic_file,
    file_hash,
    from_plain,
    read_array,
    read_json,
    read_record,
    to_plain,
    write_array,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    folder: Path
    share: float
    stages: tuple[Stage, ...] = ()
    patch: tuple[int, int, int] | None = None
    is_flat: bool = False


def recipe() -> Recipe:
    stage = Stage(channels=8, kernel=(1, 3, 3), stride=(1, 1, 1))
    return Recipe(name="Größe", folder=Path("a/b"), share=0.1, stages=(stage,), patch=(1, 2, 3))


def test_a_record_survives_json(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", recipe())
    assert read_record(Recipe, tmp_path / "r.json") == recipe()


def test_a_number_that_is_not_finite_becomes_null_and_comes_back_as_nan() -> None:
    assert to_plain({"a": float("inf"), "b": np.float32("nan")}) == {"a": None, "b": None}
    assert np.isnan(from_plain(Recipe, {"name": "n", "folder": "f", "share": None}).share)


def test_numpy_values_and_sets_become_plain_values_in_a_fixed_order() -> None:
    assert to_plain({1: np.int64(2), "s": {"b", "a"}, "v": np.array([[1.5]])}) == {
        "1": 2,
        "s": ["a", "b"],
        "v": [[1.5]],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, r"unknown keys \['nmae'\]"),
        ({"share": "0.1"}, "share should be of type float, got '0.1'"),
        ({"share": True}, "share should be of type float, got True"),
        ({"folder": 3}, "folder should be of type Path, got 3"),
        ({"is_flat": 1}, "is_flat should be of type bool, got 1"),
        ({"patch": [1, 2]}, "patch should have 3 entries, got 2"),
        ({"patch": [1, 2, 0.5]}, r"patch\[2\] should be of type int, got 0.5"),
        ({"stages": 4}, "stages should be a list, got 4"),
        ({"stages": [4]}, r"stages\[0\] should be an object with the fields of Stage"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_place(change: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        from_plain(Recipe, {**to_plain(recipe()), **change}, source="plan.json")
    assert str(caught.value).startswith("plan.json")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(DatasetError, match=r"lacks the keys \['folder', 'share'\] of Recipe"):
        from_plain(Recipe, {"name": "n"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n', "line 2 column 1"),
        ("", "line 1 column 1"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1} // comment', "line 1 column 10"),
        ("[" * 100_000, "is not valid JSON"),
    ],
    ids=["cut off", "empty", "duplicate", "NaN", "comment", "depth"],
)
def test_broken_json_is_refused_with_file_and_reason(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"d\.json") as caught:
        read_json(tmp_path / "d.json")
    assert message in str(caught.value)


def test_json_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DatasetError, match="is not valid JSON"):
        read_json(tmp_path / "d.json")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "d.json") == [1]


def test_a_missing_file_and_a_folder_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(StorageFault, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_is_stored_as_little_endian_c_order_npy_1_0(mapped: bool, tmp_path: Path) -> None:  # noqa: FBT001
    array = np.asfortranarray(np.arange(6, dtype=">i2").reshape(1, 2, 3, 1))
    write_array(tmp_path / "a.npy", array)
    loaded = read_array(tmp_path / "a.npy", mapped=mapped)
    assert (tmp_path / "a.npy").read_bytes()[:8] == b"\x93NUMPY\x01\x00"
    assert loaded.dtype == np.dtype("<i2")
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, array)


def test_an_array_of_objects_is_refused_both_ways(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"b\.npy is not a readable"):
        read_array(tmp_path / "b.npy")


def test_a_cut_off_array_is_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", np.zeros(100))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(DatasetError, match=r"Run preprocess\.py again"):
        read_array(tmp_path / "a.npy")


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", 1)
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "r.json") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert read_json(tmp_path / "r.json") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_full_disk_is_reported_and_the_old_file_is_intact(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", 1)
    with (
        pytest.raises(StorageFault, match=r"No space left.*old file is intact"),
        atomic_file(tmp_path / "r.json"),
    ):
        raise OSError(28, "No space left on device")
    assert read_json(tmp_path / "r.json") == 1


def test_a_folder_that_cannot_be_made_is_a_storage_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageFault, match="cannot be written"):
        write_json(tmp_path / "file" / "r.json", 1)


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
