"""The TFRecord container and the tf.train.Example inside it, written piece by piece without TensorFlow.

A record is the length of its payload (uint64), a checksum of these eight bytes, the payload, and a checksum
of the payload. The payload is a protocol buffer: Example { features = 1 }, Features { map feature = 1 },
Feature { bytes_list = 1 or int64_list = 3 }.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import google_crc32c
import numpy as np

MAX_PAYLOAD = 2**31 - 1  # bytes; a protocol buffer is no larger
CRC_MASK = 0xA282EAD8  # added to every rotated checksum, a constant of the format
CRC_PIECE = 2**22  # bytes handed to the checksum at a time
LENGTH_DELIMITED = 2  # wire type of a protocol buffer's field
NAME_FIELD, VALUE_FIELD, BYTES_FIELD, INT64_FIELD = 1, 2, 1, 3

Pieces = list[bytes | memoryview]
FeatureValue = bytes | Sequence[int] | np.ndarray


def example_pieces(features: Mapping[str, FeatureValue]) -> Pieces:
    """The payload of a record, in pieces: an Example with one list per name.

    bytes and arrays (their memory, C order, little-endian) become a bytes_list of one entry, numbers an
    int64_list. Arrays are not copied.
    """
    entries: Pieces = []
    for name, value in features.items():
        feature = _feature(value)
        entry = [*_field(NAME_FIELD, [name.encode()]), *_field(VALUE_FIELD, feature)]
        entries += _field(1, entry)
    return _field(1, entries)


def record_pieces(payload: Pieces) -> Pieces:
    """A whole record around `payload`; ValueError if that is more than a protocol buffer may hold."""
    length = count_bytes(payload)
    if length > MAX_PAYLOAD:
        raise ValueError(f"{length} bytes in one record, at most {MAX_PAYLOAD} are possible")
    head = struct.pack("<Q", length)
    return [head, _checksum([head]), *payload, _checksum(payload)]


def count_bytes(pieces: Iterable[bytes | memoryview]) -> int:
    """How many bytes the pieces hold together."""
    return sum(memoryview(piece).nbytes for piece in pieces)


def _feature(value: FeatureValue) -> Pieces:
    if isinstance(value, np.ndarray):
        plain = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return _field(BYTES_FIELD, _field(1, [plain.data.cast("B")]))
    if isinstance(value, bytes):
        return _field(BYTES_FIELD, _field(1, [value]))
    return _field(INT64_FIELD, _field(1, [b"".join(_varint(number) for number in value)]))


def _field(number: int, content: Pieces) -> Pieces:
    return [_varint(number << 3 | LENGTH_DELIMITED) + _varint(count_bytes(content)), *content]


def _varint(number: int) -> bytes:
    """Seven bits per byte, the lowest first; negative numbers as their 64-bit complement."""
    number &= 2**64 - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _checksum(pieces: Pieces) -> bytes:
    """The masked CRC-32C of all pieces together."""
    crc = 0
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, view.nbytes, CRC_PIECE):
            crc = google_crc32c.extend(crc, bytes(view[start : start + CRC_PIECE]))
    return struct.pack("<I", ((crc >> 15 | crc << 17) + CRC_MASK) & 0xFFFFFFFF)
