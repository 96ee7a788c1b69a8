"""The TFRecord writer against the format's definition, read here by a second, slower hand."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_preprocessing.convert2tfrec import ConvertOptions, convert
from data_preprocessing.foreground import foreground_table
from data_preprocessing.prepare import PreparedArrays, write_prepared
from data_preprocessing.tfrecord_format import record_pieces
from utils.contracts import Footprint, RawCase, Shape
from utils.errors import DatasetError, UserError
from utils.prepared_folder import read_prepared_case, write_prepared_case
from utils.storage import file_hash, read_array, write_array

REPOSITORY = Path(__file__).resolve().parents[2]
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def crc32c(data: bytes) -> int:
    """Bit by bit, from the polynomial of RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def records(path: Path) -> Iterator[bytes]:
    """The payloads of a file; both checksums of each are right."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,), start = struct.unpack("<Q", data[place : place + 8]), place + 12
        payload = data[start : start + length]
        assert data[place + 8 : start] == struct.pack("<I", masked(data[place : place + 8]))
        assert data[start + length : start + length + 4] == struct.pack("<I", masked(payload))
        yield payload
        place = start + length + 4


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if not data[place - 1] & 0x80:
            return value, place


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Number and content of every field; all of an Example's are length-delimited."""
    found, place = [], 0
    while place < len(data):
        tag, place = varint(data, place)
        assert tag & 7 == 2
        length, place = varint(data, place)
        found.append((tag >> 3, data[place : place + length]))
        assert len(found[-1][1]) == length
        place += length
    return found


def numbers(packed: bytes) -> list[int]:
    found, place = [], 0
    while place < len(packed):
        value, place = varint(packed, place)
        found.append(value - 2**64 if value >= 2**63 else value)
    return found


def parse_example(payload: bytes) -> dict[str, Any]:
    ((number, features),) = fields(payload)
    assert number == 1
    example = {}
    for number, entry in fields(features):
        (first, name), (second, feature) = fields(entry)
        assert (number, first, second) == (1, 1, 2)
        ((kind, values),) = fields(feature)
        ((_, content),) = fields(values)
        example[name.decode()] = {1: bytes, 3: numbers}[kind](content)
    return example


def write_case(folder: Path, name: str, shape: Shape, *, channels: int = 2, dtype: str = "float16") -> None:
    random = np.random.default_rng(len(name) + shape[0])
    label = random.integers(-1, 3, shape).astype(np.int16)
    footprint = Footprint(
        native_shape=shape,
        native_spacing_mm=(1.0, 1.0, 1.0),
        orientation="RAS",
        axis_order=(0, 1, 2),
        oriented_shape=shape,
        oriented_spacing_mm=(1.0, 1.0, 1.0),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        cropped_shape=shape,
        planned_shape=shape,
        padding_before=(0, 0, 0),
        padding_after=(0, 0, 0),
        qform_code=1,
        sform_code=1,
        affine=IDENTITY,
    )
    arrays = PreparedArrays(
        image=random.normal(size=(channels, *shape)).astype(np.float32),
        label=label[None],
        original_label=None,
        foreground=foreground_table(label),
        has_mask=name != "no_mask",
        meta=None,
        footprint=footprint,
    )
    case = RawCase(case_id=name, patient_id=name, images=(), class_target=None if name == "no_class" else 300)
    write_prepared(folder, case, arrays, dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cases; their names are not in the order of writing."""
    made = tmp_path / "04_3d"
    for name, shape in {"no_mask": (3, 4, 5), "a": (2, 3, 4), "no_class": (1, 2, 70)}.items():
        write_case(made, name, shape)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_array_stands_in_its_record_bit_by_bit(folder: Path, out: Path) -> None:
    convert(ConvertOptions(data=folder, results=out, vpf=2))
    examples = [
        parse_example(payload) for path in sorted(out.glob("*.tfrecord")) for payload in records(path)
    ]
    assert [example["fname"] for example in examples] == [b"a", b"no_class", b"no_mask"]
    assert [example["class_target"] for example in examples] == [[300], [-1], [300]]
    assert [example["has_mask"] for example in examples] == [[1], [1], [0]]
    for example in examples:
        name = example["fname"].decode()
        image, label = read_array(folder / f"{name}_x.npy"), read_array(folder / f"{name}_y.npy")
        assert example["X"] == image.tobytes()
        assert (example["X_shape"], example["X_dtype"]) == (list(image.shape), b"float16")
        assert (example["Y"], example["Y_shape"]) == (label.tobytes(), list(label.shape))


def test_the_index_is_what_dali_would_write(folder: Path, out: Path, tmp_path: Path) -> None:
    convert(ConvertOptions(data=folder, results=out, vpf=3))
    tool, theirs = Path(sys.executable).with_name("tfrecord2idx"), tmp_path / "theirs"
    if not tool.is_file():
        pytest.skip("tfrecord2idx is not beside this Python")
    (path,) = out.glob("*.tfrecord")
    subprocess.run([sys.executable, str(tool), str(path), str(theirs)], check=True)
    assert path.with_name(f"{path.name}.idx").read_bytes() == theirs.read_bytes()


def test_the_manifest_tells_files_cases_and_hashes(folder: Path, out: Path) -> None:
    convert(ConvertOptions(data=folder, results=out, vpf=2))
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["num_cases"], manifest["num_channels"], manifest["dtype"]) == (3, 2, "float16")
    assert [file["cases"] for file in manifest["files"]] == [["a", "no_class"], ["no_mask"]]
    for file in manifest["files"]:
        assert file["sha256"] == file_hash(out / file["file"])
        assert file["num_bytes"] == (out / file["file"]).stat().st_size
    listed = [file[key] for file in manifest["files"] for key in ("file", "index")]
    assert names(out) == sorted([*listed, "manifest.json"])


def test_a_second_conversion_replaces_the_first_and_is_equal(folder: Path, out: Path) -> None:
    convert(ConvertOptions(data=folder, results=out, vpf=1))
    convert(ConvertOptions(data=folder, results=out, vpf=3))
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(first) == 3
    convert(ConvertOptions(data=folder, results=out, vpf=3))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_a_conversion_that_breaks_off_is_not_taken_for_a_whole_one(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(ConvertOptions(data=folder, results=out))

    def break_off(payload: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_preprocessing.convert2tfrec.record_pieces", break_off)
    with pytest.raises(KeyboardInterrupt):
        convert(ConvertOptions(data=folder, results=out))
    assert names(out) == []


def test_a_case_of_the_test_set_has_a_label_of_minus_one(folder: Path, out: Path) -> None:
    case = read_prepared_case(folder, "a")
    write_prepared_case(folder, replace(case, label=None, foreground=None))
    convert(ConvertOptions(data=folder, results=out))
    (payload,) = records(next(out.glob("volumes-00000-*.tfrecord")))
    example = parse_example(payload)
    assert example["has_mask"] == [0]
    assert np.frombuffer(example["Y"], np.int16).tolist() == [-1] * 24


def spoil(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: write_array(folder / name, array)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: write_case(folder, "b", (2, 2, 2), channels=1), "float16 with 1 channels"),
        (lambda folder: write_case(folder, "b", (2, 2, 2), dtype="float32"), "float16 with 2 .*float32 with"),
        (spoil("a_x.npy", np.zeros((2, 3, 4), np.float16)), "a_x.npy holds float16"),
        (spoil("a_x.npy", np.zeros((2, 2, 3, 4))), "a_x.npy holds float64"),
        (spoil("a_y.npy", np.zeros((1, 2, 3, 5), np.int16)), "a_y.npy holds int16"),
        (lambda folder: (folder / "a_y.npy").write_bytes(b"x"), "a_y.npy is not a readable"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_before_writing(
    folder: Path, out: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(folder)
    with pytest.raises(DatasetError, match=reason):
        convert(ConvertOptions(data=folder, results=out))
    assert not out.exists()


def test_wrong_options_are_told(folder: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vpf is 0"):
        convert(ConvertOptions(data=folder, results=out, vpf=0))
    with pytest.raises(DatasetError, match="does not exist"):
        convert(ConvertOptions(data=tmp_path / "none", results=out))
    out.mkdir()
    with pytest.raises(DatasetError, match="no preprocessed case"):
        convert(ConvertOptions(data=out, results=out))


def test_the_folder_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    before = names(folder)
    with pytest.raises(UserError, match="holds something else than TFRecord files"):
        convert(ConvertOptions(data=folder, results=folder))
    assert names(folder) == before


def test_a_record_of_two_gigabytes_is_refused() -> None:
    piece = memoryview(bytes(2**20))
    with pytest.raises(ValueError, match="2147483648 bytes in one record"):
        record_pieces([piece] * 2**11)


AS_FILE, AS_MODULE = ["data_preprocessing/convert2tfrec.py"], ["-m", "data_preprocessing.convert2tfrec"]


@pytest.mark.parametrize("start", [AS_FILE, AS_MODULE])
def test_the_command_runs_as_a_file_and_as_a_module(folder: Path, out: Path, start: list[str]) -> None:
    command = [sys.executable, *start, "--data", str(folder), "--results", str(out), "--vpf", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 cases in 2 files" in done.stderr
