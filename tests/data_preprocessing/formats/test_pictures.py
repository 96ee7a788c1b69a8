"""PNG, BMP, JPEG and TIFF: pictures are volumes of one slice, colours are channels."""

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_preprocessing.cases import load_case
from data_preprocessing.faults import VolumeError
from data_preprocessing.geometry import to_planned_axes
from data_preprocessing.volume_io import (
    companion_files,
    mask_ending,
    read_label_volume,
    read_volume,
    write_volume,
)
from utils.contracts import RawCase, Spacing
from utils.storage import write_json

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)  # 3 rows, 4 columns
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
STACK = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 100  # 2 slices
SPACING: Spacing = (0.5, 0.75, 2.5)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, voxels: np.ndarray) -> Path:
    write_volume(path, voxels, affine=np.eye(4), qform_code=0, sform_code=0, spacing_mm=SPACING)
    return path


def fault_of(path: Path, read=read_volume) -> str:
    with pytest.raises(VolumeError) as caught:
        read(path)
    assert str(path.parent) in str(caught.value)
    assert "Fix: " in str(caught.value)
    return caught.value.fault.code


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".tiff"])
def test_a_grey_picture_is_one_slice_of_one_millimetre(tmp_path: Path, ending: str) -> None:
    volume = read_volume(save(tmp_path / f"p{ending}", GREY))
    assert volume.voxels.shape == (4, 3, 1)
    assert volume.voxels[3, 1, 0] == GREY[1, 3]
    assert volume.spacing_mm == (1, 1, 1)
    assert (volume.qform_code, volume.sform_code, volume.orientation) == (0, 0, "LPS")
    assert volume.remarks == ()


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_colours_are_three_channels(tmp_path: Path, ending: str) -> None:
    case = RawCase(case_id="p", patient_id="p", images=(save(tmp_path / f"p{ending}", COLOUR),))
    loaded = load_case(case)
    assert loaded.image.shape == (3, 4, 3, 1)
    np.testing.assert_array_equal(loaded.image[..., 0], COLOUR.transpose(2, 1, 0))
    assert loaded.mask_ending == ending


def test_a_picture_is_upright_where_reports_draw_it(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "p.png", GREY))
    planned = to_planned_axes(volume.voxels, orientation=volume.orientation)
    # The radiological view draws the first row at the bottom and the first column at the right.
    np.testing.assert_array_equal(planned[0, ::-1, ::-1], GREY)


def test_a_palette_gives_colours_to_an_image_and_values_to_a_label(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 3).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "p.png")
    assert read_volume(tmp_path / "p.png").voxels[1, 0, 0].tolist() == [40, 50, 60]
    np.testing.assert_array_equal(read_label_volume(tmp_path / "p.png").voxels[..., 0].T, GREY % 3)


def test_sixteen_bits_of_grey_are_read(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 5000
    for ending in (".png", ".tif"):
        np.testing.assert_array_equal(read_volume(save(tmp_path / f"d{ending}", deep)).voxels[..., 0].T, deep)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".tiff"])
def test_a_mask_comes_back_as_it_was_written(tmp_path: Path, ending: str) -> None:
    mask = np.array([[0, 1], [2, 255], [3, 4]], np.uint8)[..., None]
    path = write(tmp_path / f"m{ending}", mask)
    np.testing.assert_array_equal(read_label_volume(path).voxels, mask)
    with Image.open(path) as picture:
        assert (picture.size, picture.mode) == ((3, 2), "L")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_picture_holds_no_volume_and_no_fraction(tmp_path: Path) -> None:
    for voxels, code in ((STACK, "E206"), (GREY[..., None] / 2, "E205"), (GREY[..., None] - 5.0, "E205")):
        with pytest.raises(VolumeError, match=code):
            write(tmp_path / "v.png", voxels)
    with pytest.raises(VolumeError, match="from 0 to 255"):
        write(tmp_path / "v.bmp", np.full((2, 2, 1), 300))
    assert list(tmp_path.iterdir()) == []


def test_pages_are_slices_and_a_file_beside_them_holds_the_spacing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "case_0000.tif", STACK, photometric="minisblack")
    write_json(tmp_path / "case.json", {"spacing": [2.5, 0.75, 0.5]})
    volume = read_volume(tmp_path / "case_0000.tif")
    np.testing.assert_array_equal(volume.voxels, STACK.transpose(2, 1, 0))
    assert volume.spacing_mm == SPACING
    assert companion_files(tmp_path / "case_0000.tif") == (tmp_path / "case.json",)
    assert volume.remarks == ()


def test_a_volume_without_its_spacing_is_taken_for_one_millimetre_with_a_warning(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "case.tif", STACK, photometric="minisblack")
    volume = read_volume(tmp_path / "case.tif")
    assert volume.spacing_mm == (1, 1, 1)
    assert [remark.code for remark in volume.remarks] == ["W205"]


def test_a_written_tiff_volume_keeps_voxels_and_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / "case.tif", STACK.transpose(2, 1, 0))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, STACK.transpose(2, 1, 0))
    assert volume.spacing_mm == SPACING


@pytest.mark.parametrize(
    "content", ["[1]", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": ["1", 1, 1]}', "{"]
)
def test_a_spacing_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    tifffile.imwrite(tmp_path / "case.tif", STACK, photometric="minisblack")
    (tmp_path / "case.json").write_text(content)
    assert fault_of(tmp_path / "case.tif") == "E209"


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".jpg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_picture_that_is_cut_off_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = save(tmp_path / f"p{ending}", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert fault_of(path) in ("E202", "E203", "E204")


@pytest.mark.parametrize("place", ["pixels", "checksum"])
def test_a_flipped_byte_of_a_png_is_seen(tmp_path: Path, place: str) -> None:
    path = save(tmp_path / "p.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    content = bytearray(path.read_bytes())
    # The checksum of the pixels stands right before the length of the last chunk.
    content[len(content) // 2 if place == "pixels" else content.index(b"IEND") - 5] ^= 1
    path.write_bytes(bytes(content))
    assert fault_of(path) == "E204"


def test_missing_strips_of_a_tiff_are_no_zeros(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", STACK, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(tmp_path / "p.tif", mode="r+b") as file:
        file.pages[1].tags["StripByteCounts"].overwrite([0])
    assert fault_of(tmp_path / "p.tif") == "E203"


def test_a_picture_of_terabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "p.png").write_bytes(data + chunk(b"IEND", b""))
    assert fault_of(tmp_path / "p.png") == "E207"


def test_a_tiff_of_terabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", GREY, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "p.tif", mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(2**20)
        file.pages[0].tags["ImageWidth"].overwrite(2**20)
    assert fault_of(tmp_path / "p.tif") == "E207"


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".jpg"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"x" * 999, b"II*\0" + bytes(99)])
def test_what_is_no_picture_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    (tmp_path / f"p{ending}").write_bytes(content)
    assert fault_of(tmp_path / f"p{ending}") in ("E201", "E202", "E204", "E206")


def test_a_label_is_no_jpeg_and_has_no_colours(tmp_path: Path) -> None:
    save(tmp_path / "l.jpg", GREY)
    for path in (save(tmp_path / "l.png", COLOUR), save(tmp_path / "l.tif", COLOUR), tmp_path / "l.jpg"):
        assert fault_of(path, read_label_volume) == "E205"
    assert mask_ending(tmp_path / "l.jpg") == ".png"


def test_what_would_lose_values_is_refused(tmp_path: Path) -> None:
    deep = Image.new("RGB", (2, 2))
    content = io.BytesIO()
    deep.save(content, format="PNG")
    stored = bytearray(content.getvalue())
    stored[24] = 16  # the depth of a colour in the header
    (tmp_path / "deep.png").write_bytes(bytes(stored))
    assert fault_of(tmp_path / "deep.png") == "E205"
    tifffile.imwrite(tmp_path / "c.tif", GREY.astype(np.complex64))
    assert fault_of(tmp_path / "c.tif") == "E205"


def test_a_compression_that_needs_a_package_names_it(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "p.tif", compression="tiff_lzw")
    if find_spec("imagecodecs"):
        np.testing.assert_array_equal(read_volume(tmp_path / "p.tif").voxels[..., 0].T, GREY)
    else:
        with pytest.raises(VolumeError, match="pip install imagecodecs"):
            read_volume(tmp_path / "p.tif")


def test_files_of_several_images_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(GREY[:2], photometric="minisblack")
    assert fault_of(tmp_path / "p.tif") == "E206"
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([COLOUR, COLOUR]), photometric="rgb")
    assert fault_of(tmp_path / "rgb.tif") == "E206"


def test_masks_are_named_as_their_images() -> None:
    names = {
        "a.nii": ".nii.gz",
        "a.nii.gz": ".nii.gz",
        "a.NRRD": ".nrrd",
        "a.mhd": ".mhd",
        "IM0001": ".nii.gz",
    }
    assert {name: mask_ending(Path(name)) for name in names} == names
