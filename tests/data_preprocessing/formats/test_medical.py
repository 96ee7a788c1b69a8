"""NRRD and MetaImage: the same volume as in NIfTI, and every damage named."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.faults import VolumeError
from data_preprocessing.volume_io import companion_files, read_label_volume, read_volume, write_volume
from utils.contracts import Spacing

SPACING: Spacing = (0.9, 1.5, 2.5)
ENDINGS = (".nrrd", ".mha", ".mhd")
VOXELS = (np.arange(7 * 6 * 5).reshape(7, 6, 5) - 50).astype(np.int16)
SAMPLES = Path(__file__).parents[3].parent / "shared" / "data" / "dicom_samples"


def turned() -> np.ndarray:
    """Axes run to A, L and S, and the volume is tilted by 0.3 about x."""
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    affine = tilt @ np.array([[0, -1.5, 0, 0], [0.9, 0, 0, 0], [0, 0, 2.5, 0], [0, 0, 0, 1.0]])
    affine[:3, 3] = [10, -20, 30]
    return affine


def write(path: Path, voxels: np.ndarray, *, code: int = 1) -> Path:
    write_volume(path, voxels, affine=turned(), qform_code=code, sform_code=code, spacing_mm=SPACING)
    return path


def fault_of(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert str(path.with_suffix("")) in str(caught.value)
    assert "Fix: " in str(caught.value)
    return caught.value.fault.code


def nrrd(tmp_path: Path, header: str, data: bytes) -> Path:
    path = tmp_path / "made.nrrd"
    path.write_bytes(f"NRRD0004\n{header}\n\n".encode() + data)
    return path


def meta(tmp_path: Path, header: str, data: bytes) -> Path:
    path = tmp_path / "made.mha"
    path.write_bytes(header.encode() + data)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_volume_lies_where_its_nifti_copy_lies(tmp_path: Path, ending: str) -> None:
    nifti, other = (read_volume(write(tmp_path / f"v{name}", VOXELS)) for name in (".nii.gz", ending))
    np.testing.assert_array_equal(other.voxels, nifti.voxels)
    np.testing.assert_allclose(other.affine, nifti.affine, atol=1e-5)
    np.testing.assert_allclose(other.spacing_mm, nifti.spacing_mm, atol=1e-5)
    assert (other.orientation, other.qform_code, other.sform_code) == (nifti.orientation, 1, 1)
    assert other.voxels.dtype == np.float32
    assert other.remarks == ()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("values", [[0, 255], [-1, 1], [0, 40000], [0.5, 1.5]])
def test_voxels_of_every_type_and_channels_come_back(
    tmp_path: Path, ending: str, values: list[float]
) -> None:
    pair = np.array(values).reshape(2, 1, 1)
    np.testing.assert_array_equal(read_volume(write(tmp_path / f"one{ending}", pair)).voxels, pair)
    channels = np.stack([pair, pair + 1, pair], axis=-1)
    volume = read_volume(write(tmp_path / f"three{ending}", channels))
    np.testing.assert_array_equal(volume.voxels, channels)
    np.testing.assert_allclose(volume.affine, turned(), atol=1e-6)


def test_labels_are_whole_numbers_in_every_format(tmp_path: Path) -> None:
    for ending in ENDINGS:
        label = read_label_volume(write(tmp_path / f"l{ending}", VOXELS % 3))
        assert label.voxels.dtype == np.int16
        np.testing.assert_array_equal(label.voxels, VOXELS % 3)


def test_nrrd_without_a_position_keeps_its_spacing(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "bare.nrrd", VOXELS, code=0))
    assert (volume.qform_code, volume.sform_code) == (0, 0)
    assert volume.spacing_mm == pytest.approx(SPACING)


def test_a_nrrd_in_ras_and_one_in_lps_say_the_same(tmp_path: Path) -> None:
    common = "type: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nspace: {}\n"
    places = "space directions: {} (0,2,0) (0,0,3)\nspace origin: {}"
    data = bytes(range(24))
    ras = read_volume(nrrd(tmp_path, common.format("RAS") + places.format("(1,0,0)", "(5,6,7)"), data))
    lps_places = "space directions: (-1,0,0) (0,-2,0) (0,0,3)\nspace origin: (-5,-6,7)"
    lps = read_volume(nrrd(tmp_path, common.format("left-posterior-superior") + lps_places, data))
    np.testing.assert_array_equal(ras.affine, [[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    np.testing.assert_array_equal(lps.affine, ras.affine)
    assert ras.voxels[1, 0, 0] == 1  # the first axis is the fastest


def test_big_endian_and_a_header_at_the_end_of_the_file_are_read(tmp_path: Path) -> None:
    header = (
        "type: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: big\nbyte skip: -1\n"
        "space: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,1)"
    )
    data = np.arange(8, dtype=">i2").tobytes()
    assert read_volume(nrrd(tmp_path, header, b"junk" + data)).voxels[1, 1, 1] == 7
    big = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nBinaryData = True\n"
    big += "BinaryDataByteOrderMSB = True\n"
    volume = read_volume(meta(tmp_path, big + "HeaderSize = -1\nElementDataFile = LOCAL\n", b"junk" + data))
    assert volume.voxels[1, 1, 1] == 7


def test_the_rows_of_a_metaimages_matrix_are_its_axes(tmp_path: Path) -> None:
    header = (
        "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nBinaryData = True\nElementSpacing = 1 2 3\n"
        "TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 4 5 6\nElementDataFile = LOCAL\n"
    )
    volume = read_volume(meta(tmp_path, header, bytes(range(8))))
    # The first voxel axis runs along LPS y, that is to P; the second against LPS x, that is to R.
    np.testing.assert_array_equal(volume.affine, [[0, 2, 0, -4], [-1, 0, 0, -5], [0, 0, 3, 6], [0, 0, 0, 1]])
    assert volume.orientation == "PRS"


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".zraw"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16))
    path = write(tmp_path / f"cut{'.mhd' if ending == '.zraw' else ending}", noise)
    content = path.with_suffix(ending).read_bytes()
    path.with_suffix(ending).write_bytes(content[: int(len(content) * share)])
    assert fault_of(path) == "E203"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_voxels_without_their_checksum_are_cut_off(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"cut{ending}", VOXELS)
    path.write_bytes(path.read_bytes()[:-2])
    assert fault_of(path) == "E203"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_wrong_checksum_is_seen(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"flipped{ending}", VOXELS)
    content = bytearray(path.read_bytes())
    content[-6 if ending == ".nrrd" else -1] ^= 1
    path.write_bytes(bytes(content))
    assert fault_of(path) == "E204"


def test_a_small_file_that_unpacks_to_far_more_than_promised_is_refused(tmp_path: Path) -> None:
    header = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nBinaryData = True\nCompressedData = True\n"
    path = meta(tmp_path, header + "ElementDataFile = LOCAL\n", zlib.compress(bytes(2**23)))
    assert fault_of(path) == "E207"


NRRD_FAULTS = {
    "sizes of a terabyte": ("sizes: 100000 100000 100000", "E207"),
    "two axes": ("dimension: 2\nsizes: 2 2", "E206"),
    "no type": ("type: block", "E205"),
    "bzip2": ("encoding: bzip2", "E205"),
    "voxels elsewhere": ("data file: /etc/passwd", "E202"),
    "sheared": ("space directions: (1,0,0) (0.5,1,0) (0,0,1)", "E210"),
    "singular": ("space directions: (1,0,0) (1,0,0) (0,0,1)", "E210"),
    "not finite": ("space origin: (inf,0,0)", "E210"),
    "an axis too few": ("space directions: (1,0,0) (0,1,0)", "E210"),
    "micrometres": ('space units: "um" "um" "um"', "E209"),
    "spacing zero": ("space directions: (0,0,0) (0,1,0) (0,0,1)", "E209"),
    "no number": ("sizes: 2 two 2", "E202"),
    "a spacing too few": ("spacings: 1 1", "E202"),
    "a kind too many": ("kinds: domain domain domain domain", "E202"),
    "a gap": ("line skip: 3", "E208"),
}


@pytest.mark.parametrize("name", NRRD_FAULTS)
def test_what_is_wrong_with_a_nrrd_header_is_named(tmp_path: Path, name: str) -> None:
    changed, code = NRRD_FAULTS[name]
    fields = dict(
        line.split(": ", 1)
        for line in (
            "type: uchar|dimension: 3|sizes: 2 2 2|encoding: raw|space: RAS|"
            f"space directions: (1,0,0) (0,1,0) (0,0,1)|{changed.replace(chr(10), '|')}"
        ).split("|")
    )
    header = "\n".join(f"{key}: {value}" for key, value in fields.items())
    assert fault_of(nrrd(tmp_path, header, bytes(8))) == code


META_FAULTS = {
    "sizes of a terabyte": ("DimSize = 100000 100000 100000", "E207"),
    "no size": ("DimSize = 2 0 2", "E206"),
    "two axes": ("NDims = 2\nDimSize = 2 2", "E206"),
    "a number with 5000 digits": (f"NDims = {'9' * 5000}", "E202"),
    "text for a size": ("DimSize = 2 two 2", "E202"),
    "unknown type": ("ElementType = MET_STRING", "E205"),
    "text voxels": ("BinaryData = False", "E205"),
    "a mesh": ("ObjectType = Mesh", "E202"),
    "voxels elsewhere": ("ElementDataFile = /etc/passwd", "E110"),
    "voxels above": ("ElementDataFile = ../voxels.raw", "E110"),
    "a list of files": ("ElementDataFile = LIST", "E110"),
    "a pattern of files": ("ElementDataFile = slice%03d.raw", "E110"),
    "voxels missing": ("ElementDataFile = missing.raw", "E201"),
    "spacing zero": ("ElementSpacing = 1 0 1", "E209"),
    "sheared": ("TransformMatrix = 1 0 0 1 1 0 0 0 1", "E210"),
    "nan": ("Offset = nan 0 0", "E202"),
}


@pytest.mark.parametrize("name", META_FAULTS)
def test_what_is_wrong_with_a_metaimage_header_is_named(tmp_path: Path, name: str) -> None:
    changed, code = META_FAULTS[name]
    lines = f"NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nBinaryData = True\n{changed}".splitlines()
    fields = dict(line.split(" = ", 1) for line in lines)
    place = fields.pop("ElementDataFile", "LOCAL")
    header = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path = meta(tmp_path, f"{header}ElementDataFile = {place}\n", bytes(8))
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.fault.code == code
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"x" * 1000, b"NRRD0004\ntype: uchar"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"odd{ending}"
    path.write_bytes(content)
    assert fault_of(path) in ("E201", "E202")


def test_the_voxels_of_a_mhd_belong_to_it(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mhd", VOXELS)
    assert companion_files(path) == (tmp_path / "v.zraw",)
    assert companion_files(write(tmp_path / "v.mha", VOXELS)) == ()
    path.write_bytes(b"damaged")
    assert companion_files(path) == ()


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_slicers_nrrd_lies_on_its_ct() -> None:
    label = read_label_volume(SAMPLES / "dcmqi_ct3_nrrd" / "liver_seg.nrrd")
    image = read_volume(SAMPLES / "dcmqi_ct3_series" / "01.dcm")
    assert label.voxels.shape == image.voxels.shape
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
