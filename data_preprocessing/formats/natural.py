"""PNG, BMP and JPEG pictures <-> volumes one slice deep, by Pillow; colours become channels.

A picture has no place in the world and no spacing: 1 mm, x to the left and y to the back, so that it stands
upright in every view of ours. nnU-Net v2 makes channels of colours in the same way.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data_preprocessing.nifti_header import MAX_VOXEL_BYTES
from data_preprocessing.stored_bytes import check_plain_file, check_voxel_bytes, read_plain_file, read_start
from data_preprocessing.volume import (
    LPS_TO_RAS,
    Grid,
    Purpose,
    Volume,
    VolumeSize,
    compact,
    placed_volume,
    refuse,
)
from utils.storage import atomic_file

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

KINDS = {".png": "PNG", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}
GREY_MODES = ("1", "L", "I;16", "I;16B", "I", "F")
COLOUR_MODES = ("RGB", "RGBA", "LA")
PALETTE = "P"
MODE_BYTES = {"I;16": 2, "I;16B": 2, "I": 4, "F": 4}  # per pixel; other modes have one byte per colour
MAX_PIXELS = MAX_VOXEL_BYTES // 4  # of a grey picture as float32
PNG_DEPTH, PNG_COLOURS = slice(24, 25), slice(25, 26)  # bytes of the header chunk
DEEP, COLOURED = b"\x10", (b"\x02", b"\x04", b"\x06")  # 16 bits; RGB, grey with alpha, RGB with alpha
# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, struct.error, zlib.error)


def read(path: Path, purpose: Purpose) -> Volume:
    """(x, y, 1), or (x, y, 1, channels) of a coloured image; a palette gives colours, or a label's values."""
    content = read_plain_file(path)
    kind = KINDS[path.suffix.lower()]
    if purpose == "label" and kind == "JPEG":
        what = "JPEG changes values, so it cannot hold a label."
        raise refuse("E205", path, what, "store the label as a PNG of whole numbers.")
    if kind == "PNG" and content[PNG_DEPTH] == DEEP and content[PNG_COLOURS] in COLOURED:
        what = "the picture has colours of 16 bits, of which only 8 could be read."
        raise refuse("E205", path, what, "store it with 8 bits per colour, or as TIFF.")
    pixels = _pixels(content, path, purpose)
    if purpose == "label" and pixels.ndim == 3:
        what = f"the label is a colour picture with {pixels.shape[2]} values per pixel."
        raise refuse("E205", path, what, "store the label as a PNG with one whole number per pixel.")
    return picture_volume(pixels, path)


def picture_volume(pixels: np.ndarray, path: Path) -> Volume:
    """Pixels (rows, columns) or (rows, columns, channels) as a volume of one slice."""
    slice_of = pixels.T if pixels.ndim == 2 else pixels.transpose(1, 0, 2)
    return placed_volume(slice_of[:, :, None], LPS_TO_RAS, path, has_position=False)


def measure(path: Path) -> VolumeSize:
    """Shape and memory by the header; an image with a palette has the three colours that it is read as."""
    check_plain_file(path)
    with _pillow(path, path.open("rb")) as picture:
        columns, rows = picture.size
        bands = 3 if picture.mode == PALETTE else len(picture.getbands())
        item = MODE_BYTES.get(picture.mode, 1)
    shape = (columns, rows, 1) if bands == 1 else (columns, rows, 1, bands)
    array = check_voxel_bytes(shape, item, path)
    decoded = columns * rows * (4 if bands > 1 else item)  # Pillow keeps every colour in four bytes
    # The pixels become bytes and an array before the picture is gone, then float32.
    twice = decoded + 2 * array - math.prod(shape) * np.dtype(np.float32).itemsize
    return VolumeSize(shape=shape, affine=LPS_TO_RAS, beside=path.stat().st_size + max(array, twice))


def write(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    """One slice of whole numbers as a grey PNG (8 or 16 bits) or BMP (8 bits); `grid` has no place in it."""
    from PIL import Image

    del grid
    pixels = np.ascontiguousarray(one_slice(voxels, path))
    if path.suffix.lower() != ".png" and pixels.dtype != np.uint8:
        what = f"a {path.suffix} picture holds values from 0 to 255, got {pixels.min()} to {pixels.max()}."
        raise refuse("E205", path, what, "write a PNG.")
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=KINDS[path.suffix.lower()])
    with atomic_file(path) as stream:
        stream.write(content.getvalue())


def one_slice(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Voxels (x, y, 1) of whole numbers from 0 to 65535 as (rows, columns), uint8 or uint16."""
    if voxels.ndim != 3 or voxels.shape[2] != 1:
        what = f"a picture is one slice deep, the volume has the shape {voxels.shape}."
        raise refuse("E206", path, what, "write a NIfTI file.")
    stored = compact(voxels)
    if stored.dtype.kind == "f" or stored.min() < 0 or stored.max() > np.iinfo(np.uint16).max:
        what = f"a picture holds whole numbers from 0 to 65535, got {stored.min():g} to {stored.max():g}."
        raise refuse("E205", path, what, "write a NIfTI file.")
    return stored[:, :, 0].T.astype(np.uint8 if stored.dtype == np.uint8 else np.uint16)


def _pixels(content: bytes, path: Path, purpose: Purpose) -> np.ndarray:
    """(rows, columns) or (rows, columns, channels); every checksum of the file is verified first."""
    with _pillow(path, io.BytesIO(content)) as checked:
        columns, rows = checked.size
        check_voxel_bytes((columns, rows, len(checked.getbands())), 4, path)
        checked.verify()
    with _pillow(path, io.BytesIO(content)) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise refuse("E206", path, "the file holds several pictures.", "save one picture per file.")
        if picture.mode == PALETTE and purpose == "image":
            picture = picture.convert("RGB")
        if picture.mode not in (*GREY_MODES, *COLOUR_MODES, PALETTE):
            what = f"pictures of the kind {picture.mode} are not supported."
            raise refuse("E205", path, what, "save it again as grey or RGB.")
        return np.array(picture)


@contextmanager
def _pillow(path: Path, stream: BinaryIO) -> Iterator[ImageFile]:
    """The picture in `stream`, opened but not decoded; what Pillow raises meanwhile is told of `path`."""
    from PIL import Image

    # Pillow refuses far smaller pictures than we do. Ours is checked before a pixel is decoded.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    kind = KINDS[path.suffix.lower()]
    fix = "copy the file again, or save it again as PNG."
    try:
        with stream, Image.open(stream, formats=(kind,)) as picture:
            yield picture
    except Image.DecompressionBombError as error:
        raise refuse("E207", path, f"the picture is too large: {error}", "cut it into tiles.") from error
    except Image.UnidentifiedImageError as error:
        what = f"not a {kind} picture: it starts with {read_start(path, 8)!r}."
        raise refuse("E202", path, what, fix) from error
    except DECODER_ERRORS as error:
        raise refuse("E204", path, f"the picture is damaged or cut off ({error}).", fix) from error
