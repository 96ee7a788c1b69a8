import csv
import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing import volume_io
from data_preprocessing.cases import inspect_case
from data_preprocessing.faults import VolumeError
from data_preprocessing.nifti_header import parse_header
from data_preprocessing.volume_io import (
    Volume,
    integer_labels,
    read_header,
    read_label_volume,
    read_volume,
    write_volume,
)
from utils.contracts import RawCase, Spacing

ODD = Path(__file__).parents[2].parent / "shared" / "data" / "odd_nifti"
SPACING: Spacing = (0.5, 0.75, 2.5)
LPS = np.array([[-0.5, 0, 0, 10], [0, -0.75, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def write(path: Path, voxels: np.ndarray, *, qform_code: int = 1, sform_code: int = 1) -> Path:
    write_volume(path, voxels, affine=LPS, qform_code=qform_code, sform_code=sform_code, spacing_mm=SPACING)
    return path


@pytest.fixture
def counting() -> np.ndarray:
    """A volume of 4 x 3 x 2 voxels with the values 0 to 23, as int16 with negatives."""
    return (np.arange(24).reshape(4, 3, 2) - 4).astype(np.int16)


def patched(path: Path, offset: int, content: bytes) -> Path:
    """The uncompressed file `path` with `content` written over the bytes from `offset` on."""
    stored = bytearray(path.read_bytes())
    stored[offset : offset + len(content)] = content
    path.write_bytes(bytes(stored))
    return path


def code_of(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)
    return caught.value.fault.code


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
@pytest.mark.parametrize(("qform_code", "sform_code"), [(1, 1), (0, 2), (3, 0)])
def test_what_is_written_is_read_back_exactly(
    tmp_path: Path, counting: np.ndarray, name: str, qform_code: int, sform_code: int
) -> None:
    path = write(tmp_path / name, counting, qform_code=qform_code, sform_code=sform_code)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, counting)
    np.testing.assert_allclose(volume.affine, LPS, atol=1e-6)
    assert volume.spacing_mm == pytest.approx(SPACING)
    assert (volume.qform_code, volume.sform_code, volume.orientation) == (qform_code, sform_code, "LPS")
    assert volume.voxels.dtype == np.float32
    assert volume.remarks == ()


def test_without_form_codes_the_spacing_alone_survives(tmp_path: Path, counting: np.ndarray) -> None:
    volume = read_volume(write(tmp_path / "bare.nii.gz", counting, qform_code=0, sform_code=0))
    assert (volume.qform_code, volume.sform_code) == (0, 0)
    assert volume.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize(
    ("values", "stored"),
    [([0, 255], "uint8"), ([-1, 1], "int16"), ([0, 40000], "int32"), ([0.5, 1.5], "float32")],
)
def test_voxels_are_stored_in_the_smallest_type_that_holds_them(
    tmp_path: Path, values: list[float], stored: str
) -> None:
    path = write(tmp_path / "volume.nii", np.array(values).reshape(2, 1, 1))
    assert read_header(path).voxel_type == np.dtype(stored)


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path, counting: np.ndarray) -> None:
    first, second = (write(tmp_path / name, counting > 3) for name in ("a.nii.gz", "b.nii.gz"))
    assert first.read_bytes() == second.read_bytes()


def test_an_oblique_affine_is_kept(tmp_path: Path, counting: np.ndarray) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    path = tmp_path / "oblique.nii"
    write_volume(path, counting, affine=turn @ LPS, qform_code=1, sform_code=0, spacing_mm=SPACING)
    np.testing.assert_allclose(read_volume(path).affine, turn @ LPS, atol=1e-5)


def test_a_last_axis_of_one_is_dropped_and_channels_stay_last(tmp_path: Path, counting: np.ndarray) -> None:
    single = read_volume(write(tmp_path / "single.nii", counting[..., None]))
    double = read_volume(write(tmp_path / "double.nii", np.stack([counting, counting + 1], axis=-1)))
    assert single.voxels.shape == (4, 3, 2)
    np.testing.assert_array_equal(double.voxels[..., 1], counting + 1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16))
    path = write(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert code_of(path) == "E203"


@pytest.mark.parametrize("position", [-5, -1])
def test_a_wrong_checksum_or_length_is_refused(tmp_path: Path, counting: np.ndarray, position: int) -> None:
    path = write(tmp_path / "flipped.nii.gz", counting)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    assert code_of(path) == "E204"


def test_a_missing_gzip_trailer_is_refused(tmp_path: Path, counting: np.ndarray) -> None:
    path = write(tmp_path / "no_trailer.nii.gz", counting)
    path.write_bytes(path.read_bytes()[:-8])
    assert code_of(path) == "E203"


def test_concatenated_gzip_members_are_one_file(tmp_path: Path, counting: np.ndarray) -> None:
    plain = write(tmp_path / "plain.nii", counting).read_bytes()
    path = tmp_path / "members.nii.gz"
    path.write_bytes(gzip.compress(plain[:360]) + gzip.compress(plain[360:]))
    np.testing.assert_array_equal(read_volume(path).voxels, counting)


def test_compression_is_seen_by_content_and_noted(tmp_path: Path, counting: np.ndarray) -> None:
    path = write(tmp_path / "plain.nii", counting).rename(tmp_path / "plain.nii.gz")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, counting)
    assert [remark.code for remark in volume.remarks] == ["W201"]


def test_a_small_file_that_unpacks_to_far_more_than_promised_is_refused(
    tmp_path: Path, counting: np.ndarray
) -> None:
    plain = write(tmp_path / "plain.nii", counting).read_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(plain + bytes(2**22)))
    assert code_of(path) == "E207"


@pytest.mark.parametrize(
    ("offset", "content", "code"),
    [
        (0, struct.pack("<i", 7), "E202"),
        (344, b"xyz\0", "E202"),
        (344, b"ni1\0", "E202"),
        (40, struct.pack("<h", 9), "E206"),
        (42, struct.pack("<h", 0), "E206"),
        (42, struct.pack("<h", -24), "E206"),
        (40, struct.pack("<4h", 3, 32767, 32767, 32767), "E207"),
        (40, struct.pack("<4h", 2, 4, 3, 1), "E206"),
        (70, struct.pack("<h", 128), "E205"),
        (70, struct.pack("<h", 32), "E205"),
        (70, struct.pack("<h", 77), "E205"),
        (108, struct.pack("<f", float("nan")), "E208"),
        (108, struct.pack("<f", 1e9), "E208"),
        (108, struct.pack("<f", 0), "E208"),
        (280, struct.pack("<f", float("nan")), "E210"),
        (280, struct.pack("<12f", *([1.0, 1, 1, 0] * 3)), "E210"),
        (280, struct.pack("<4f", 1, 0.3, 0, 0), "E210"),
        (280, bytes(48), "E209"),
        (123, bytes([1]), "E209"),
    ],
)
def test_a_bad_header_field_is_named_before_any_voxel_is_read(
    tmp_path: Path, counting: np.ndarray, offset: int, content: bytes, code: str
) -> None:
    assert code_of(patched(write(tmp_path / "bad.nii", counting), offset, content)) == code


@pytest.mark.parametrize("spacing", [0.0, float("nan"), float("inf"), 1e-6, 1e4])
def test_an_unusable_spacing_is_refused(tmp_path: Path, counting: np.ndarray, spacing: float) -> None:
    path = write(tmp_path / "bad.nii", counting, qform_code=0, sform_code=0)
    assert code_of(patched(path, 80, struct.pack("<f", spacing))) == "E209"


def test_a_negative_spacing_counts_as_positive_and_is_noted(tmp_path: Path, counting: np.ndarray) -> None:
    path = write(tmp_path / "negative.nii", counting, sform_code=0)
    volume = read_volume(patched(path, 80, struct.pack("<f", -0.5)))
    assert volume.spacing_mm == pytest.approx(SPACING)
    assert [remark.code for remark in volume.remarks] == ["W203"]


def test_the_sform_wins_over_a_qform_that_disagrees(tmp_path: Path, counting: np.ndarray) -> None:
    path = patched(write(tmp_path / "forms.nii", counting), 268, struct.pack("<f", 40.0))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, LPS, atol=1e-6)
    assert [remark.code for remark in volume.remarks] == ["W202"]
    assert "30 mm" in volume.remarks[0].what


@pytest.mark.parametrize("slope", [0.0, float("nan"), float("inf")])
def test_a_slope_without_meaning_is_no_scaling(tmp_path: Path, counting: np.ndarray, slope: float) -> None:
    path = patched(write(tmp_path / "slope.nii", counting), 112, struct.pack("<2f", slope, 5.0))
    np.testing.assert_array_equal(read_volume(path).voxels, counting)


def test_slope_and_intercept_are_applied(tmp_path: Path, counting: np.ndarray) -> None:
    path = patched(write(tmp_path / "slope.nii", counting), 112, struct.pack("<2f", 2.0, -1024.0))
    np.testing.assert_array_equal(read_volume(path).voxels, counting * 2.0 - 1024)


def test_unsigned_values_beyond_int16_are_noted_as_wrapped(tmp_path: Path) -> None:
    path = write(tmp_path / "wrapped.nii", np.array([-1, 300], dtype=np.int16).reshape(2, 1, 1))
    volume = read_volume(patched(path, 70, struct.pack("<h", 512)))
    assert volume.voxels.max() == 65535
    assert [remark.code for remark in volume.remarks] == ["W204"]


def test_big_endian_nifti_2_headers_are_read() -> None:
    head = bytearray(544)
    struct.pack_into(">i4s", head, 0, 540, b"n+2\0")
    struct.pack_into(">hh8q", head, 12, 4, 16, 3, 5, 6, 7, 1, 1, 1, 1)
    struct.pack_into(">8d", head, 104, 1, 0.5, 0.75, 2.5, 1, 1, 1, 1)
    struct.pack_into(">q2d", head, 168, 544, 1, 0)
    header = parse_header(bytes(head), Path("volume.nii"))
    assert header.shape == (5, 6, 7)
    assert header.voxel_type == np.dtype(">i2")
    assert header.spacing_mm == (0.5, 0.75, 2.5)


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (b"", "E201", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "E202", "LFS"),
        (b"\n<!DOCTYPE html><html></html>", "E202", "HTML"),
        (b"x" * 1000, "E202", "not a NIfTI"),
        (b"\x1f\x8b" + b"\xff" * 100, "E204", "damaged"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(tmp_path: Path, content: bytes, code: str, word: str) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=word) as caught:
        read_volume(path)
    assert caught.value.fault.code == code


def test_folders_missing_files_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    assert {code_of(tmp_path), code_of(tmp_path / "absent.nii"), code_of(tmp_path / "pipe.nii")} == {"E201"}


def test_nearly_whole_labels_are_rounded_never_truncated() -> None:
    labels = integer_labels(np.array([0.0, 0.999999, 1.0000153, -0.0004]), file="label")
    assert labels.tolist() == [0, 1, 1, 0]
    assert labels.dtype == np.int16


@pytest.mark.parametrize(
    ("value", "code"), [(1.5, "E303"), (float("nan"), "E303"), (float("-inf"), "E303"), (1e6, "E304")]
)
def test_a_value_that_is_no_label_is_refused_with_its_place(value: float, code: str) -> None:
    voxels = np.zeros((2, 2, 2))
    voxels[1, 0, 1] = value
    with pytest.raises(VolumeError) as caught:
        integer_labels(voxels, file="label.nii")
    assert caught.value.fault.code == code
    assert code == "E304" or "(1, 0, 1)" in caught.value.fault.what


def test_64_bit_labels_are_checked_before_they_are_narrowed() -> None:
    with pytest.raises(VolumeError, match="65536"):
        integer_labels(np.array([0, 65536], dtype=np.int64), file="label.nii")


ODD_CODES = {
    "lab_255": "E304",
    "lab_negative": "E304",
    "lab_empty": "W301",
    "lab_wrong_shape": "E306",
    "lab_shifted_affine": "E307",
    "lab_spacing_diff": "E307",
    "img_nan": "E301",
    "img_inf": "E301",
    "img_constant": "E302",
    "img_uint16_wrapped": "W204",
    "img_4d_two": "E305",
    "img_2d": "E206",
    "img_one_slice": "E306",
    "img_rgb24": "E205",
    "img_complex": "E205",
    "img_sheared": "E210",
    "img_oblique20": "",
    "img_qform_ne_sform": "W202",
    "img_no_form_codes": "W303",
    "img_zero_spacing": "E209",
    "bad_truncated": "E203",
    "bad_flipped_byte": "E204",
    "bad_zero_bytes": "E201",
    "bad_not_gzip": "W201",
    "bad_lfs_pointer": "E202",
    "bad_short_data": "E203",
}
OWN_LABEL = {"img_oblique20", "img_ras", "img_pir", "img_las"}


def odd_rows() -> list[str]:
    if not ODD.is_dir():
        return []
    with (ODD / "manifest.csv").open() as stream:
        return [row["file"] for row in csv.DictReader(stream)]


@pytest.mark.real_data
@pytest.mark.skipif(not ODD.is_dir(), reason="the odd NIfTI files are not in ../shared/data")
@pytest.mark.parametrize("name", odd_rows())
def test_every_odd_file_is_read_right_or_refused_by_its_own_code(name: str) -> None:
    made, path = ODD / "made", ODD / name
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    kind = stem.split("_")[1]
    image, label = made / "img_ref.nii.gz", made / "lab_ref.nii.gz"
    if stem.startswith("lab_"):
        label = path
        image = made / f"img_{kind}.nii.gz" if f"img_{kind}" in OWN_LABEL else image
    else:
        image = path
        label = made / f"lab_{kind}.nii.gz" if stem in OWN_LABEL else label
    # The sform, which the reader prefers, is 30 mm off: this image has no label that lies on it.
    paired = None if stem == "img_qform_ne_sform" else label
    case = RawCase(case_id=stem, patient_id=stem, images=(image,), label=paired)
    inspection = inspect_case(case, allowed_labels=frozenset({0, 1}), num_channels=1)
    codes = [fault.code for fault in inspection.faults]
    assert codes == ([ODD_CODES[stem]] if ODD_CODES.get(stem) else [])
    assert all(fault.case_id == stem and fault.file for fault in inspection.faults)


@pytest.mark.real_data
@pytest.mark.skipif(not ODD.is_dir(), reason="the odd NIfTI files are not in ../shared/data")
@pytest.mark.parametrize(
    "stem", ["img_plain.nii", "img_f64.nii.gz", "img_bigendian.nii.gz", "img_slope.nii.gz"]
)
def test_other_ways_to_store_the_same_image_give_the_same_values(stem: str) -> None:
    reference = read_volume(ODD / "made" / "img_ref.nii.gz").voxels
    tolerance = 16 if stem.startswith("img_slope") else 0
    np.testing.assert_allclose(read_volume(ODD / "made" / stem).voxels, reference, rtol=0, atol=tolerance)


@pytest.mark.real_data
@pytest.mark.skipif(not ODD.is_dir(), reason="the odd NIfTI files are not in ../shared/data")
@pytest.mark.parametrize("stem", ["lab_int8", "lab_float", "lab_float_inexact"])
def test_other_ways_to_store_the_same_label_give_the_same_values(stem: str) -> None:
    reference = read_label_volume(ODD / "made" / "lab_ref.nii.gz").voxels
    np.testing.assert_array_equal(read_label_volume(ODD / "made" / f"{stem}.nii.gz").voxels, reference)


@pytest.mark.parametrize("read", [read_volume, read_label_volume])
def test_voxels_that_no_memory_is_left_for_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    def reader(path: Path, purpose: str) -> Volume:
        raise MemoryError("Unable to allocate 48.0 GiB")

    monkeypatch.setitem(volume_io.READERS, ".nrrd", reader)
    with pytest.raises(VolumeError, match=r"E207 .*a\.nrrd.*free memory \(Unable to allocate 48\.0 GiB\)"):
        read(tmp_path / "a.nrrd")
