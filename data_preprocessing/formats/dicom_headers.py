"""DICOM headers -> what a volume needs of each slice; by pydicom, pixels left unread."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_preprocessing.stored_bytes import check_plain_file, errors_named
from data_preprocessing.volume import refuse

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"  # one zlib stream, which pydicom unpacks without a limit
GREY = ("MONOCHROME1", "MONOCHROME2")
MAX_FRAMES = 100_000
# What pydicom raises on damaged files.
PARSER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    struct.error,
)
PER_FRAME, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "PatientID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    PER_FRAME,
    SHARED,
]


PIXEL_TAGS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
]
MASK_TAGS = [
    *TAGS,
    "SegmentationType",
    "MaximumFractionalValue",
    "SegmentSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One slice: where it lies in DICOM's world (LPS, mm) and how its stored numbers become intensities."""

    file: Path
    index: int  # within the file
    shape: tuple[int, int]  # rows, columns
    position: np.ndarray  # (3,) centre of the first pixel
    orientation: np.ndarray  # (2, 3) unit steps along a row (to the next column) and along a column
    pixel_mm: tuple[float, float]  # distance of rows, of columns
    thickness_mm: float  # distance of slices where there is only one; 0 where it is not given
    slope: float
    intercept: float


def is_dicom(path: Path) -> bool:
    """Whether the file starts as DICOM files do; false for what cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] == MAGIC
    except OSError:
        return False


def read_dicom(path: Path, *, tags: Sequence[str] | None = None) -> Dataset:
    """The elements `tags` of a file, each of them parsed; without `tags` everything, parsed on demand.

    Raises VolumeError where it is damaged, or compressed as a whole, which cannot be read within bounds.
    """
    from pydicom import config, dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    # Values outside the standard's rules are common, and what is used of them is checked here.
    config.settings.reading_validation_mode = config.IGNORE
    check_plain_file(path)
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
        if syntax == DEFLATED:
            what = "the file is deflated as a whole (transfer syntax Deflated Explicit VR Little Endian)."
            raise refuse("E212", path, what, "convert it, for example with `dcmconv --write-xfer-little`.")
        if tags is None:
            return dcmread(path)
        data = dcmread(path, stop_before_pixels="PixelData" not in tags, specific_tags=list(tags))
        # Values are parsed when they are first asked for; what cannot be parsed is found here.
        for _ in data.iterall():
            pass
        return data
    except (InvalidDicomError, BytesLengthException, *PARSER_ERRORS) as error:
        what = f"the DICOM file is damaged or cut off ({type(error).__name__}: {error})."
        raise refuse("E202", path, what, "export or copy the file again.") from error


def read_header(path: Path) -> Dataset:
    """The elements that a volume is made of."""
    return read_dicom(path, tags=TAGS)


def is_image(header: Dataset) -> bool:
    """Whether the object holds slices that lie somewhere in the patient, and is no mask or dose."""
    is_placed = "ImageOrientationPatient" in header or PER_FRAME in header or SHARED in header
    return "Rows" in header and is_placed and str(header.get("Modality", "")) not in ("SEG", "RTDOSE")


def referenced_series(path: Path) -> set[str]:
    """The UIDs of the series that a SEG (directly) or an RTSTRUCT (below its frame of reference) names."""
    data = read_dicom(path, tags=MASK_TAGS)
    items = list(data.get("ReferencedSeriesSequence", None) or ())
    for reference in data.get("ReferencedFrameOfReferenceSequence", None) or ():
        for study in reference.get("RTReferencedStudySequence", None) or ():
            items.extend(study.get("RTReferencedSeriesSequence", None) or ())
    try:
        return {str(item.SeriesInstanceUID) for item in items}
    except PARSER_ERRORS as error:
        what = f"a reference to a series is damaged ({error})."
        raise refuse("E202", path, what, "export the object again.") from error


def frames_of(header: Dataset, path: Path) -> list[Frame]:
    """The slices of one file: one, or those of a multi-frame object; VolumeError where a value lacks."""
    _check_pixels(header, path)
    return placed_frames(header, path)


def placed_frames(header: Dataset, path: Path) -> list[Frame]:
    """As `frames_of`, whatever the pixels mean."""
    if PER_FRAME not in header:
        if int(header.get("NumberOfFrames", None) or 1) > 1:
            what = "the file holds several frames without a position of each."
            raise refuse("E211", path, what, "export the series as single slices or as an enhanced object.")
        return [_frame([header], header, path, 0)]
    groups = list(header.get(PER_FRAME, None) or [])
    shared = list(header.get(SHARED, None) or [])
    if not 1 <= len(groups) <= MAX_FRAMES or len(groups) != int(header.get("NumberOfFrames", None) or 1):
        what = f"NumberOfFrames is {header.get('NumberOfFrames')}, but {len(groups)} frames are described."
        raise refuse("E211", path, what, "export the file again.")
    return [_frame([group, *shared, header], header, path, index) for index, group in enumerate(groups)]


def _check_pixels(header: Dataset, path: Path) -> None:
    kind, samples = str(header.get("PhotometricInterpretation", "")), header.get("SamplesPerPixel", 1)
    if samples != 1 or kind not in GREY:
        what = f"the pixels are {kind or 'of no kind'} with {samples} values each."
        raise refuse("E205", path, what, "give a series of grey images, without screenshots and colour maps.")
    if "ModalityLUTSequence" in header:
        what = "the intensities follow from a table (Modality LUT), which is not supported."
        raise refuse("E205", path, what, "export the series with a rescale slope and intercept.")


def _frame(places: Sequence[Any], header: Dataset, path: Path, index: int) -> Frame:
    """`places` are the data sets that may hold a value, the nearest first."""
    with errors_named(path):
        steps = _numbers(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6, path)
        pixel_mm = _numbers(places, "PixelMeasuresSequence", "PixelSpacing", 2, path)
        position = _numbers(places, "PlanePositionSequence", "ImagePositionPatient", 3, path)
    measures, values = "PixelMeasuresSequence", "PixelValueTransformationSequence"
    gap = _value(places, measures, "SpacingBetweenSlices", 0.0, path)
    rows, columns = (int(header.get(name, None) or 0) for name in ("Rows", "Columns"))
    return Frame(
        file=path,
        index=index,
        shape=(rows, columns),
        position=position,
        orientation=steps.reshape(2, 3),
        pixel_mm=(float(pixel_mm[0]), float(pixel_mm[1])),
        thickness_mm=abs(gap) or abs(_value(places, measures, "SliceThickness", 0.0, path)),
        slope=_value(places, values, "RescaleSlope", 1.0, path),
        intercept=_value(places, values, "RescaleIntercept", 0.0, path),
    )


def _find(places: Sequence[Any], group: str, name: str) -> Any:
    """The element itself, or the one inside the first item of the functional group; None without either."""
    for place in places:
        items = place.get(group, None)
        inner = items[0].get(name, None) if items else None
        for value in (inner, place.get(name, None)):
            if value is not None and value != "":
                return value
    return None


def _numbers(places: Sequence[Any], group: str, name: str, count: int, path: Path) -> np.ndarray:
    try:
        found = _find(places, group, name)
        values = np.array([float(value) for value in found]) if found is not None else np.empty(0)
    except (ValueError, TypeError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        what = f"{name} should hold {count} numbers."
        raise refuse("E211", path, what, "export the series with its geometry, without reformats in colour.")
    return values


def _value(places: Sequence[Any], group: str, name: str, default: float, path: Path) -> float:
    try:
        found = _find(places, group, name)
        value = default if found is None else float(found)
    except (ValueError, TypeError):
        value = float("nan")
    if not np.isfinite(value):
        raise refuse("E211", path, f"{name} is no number.", "export the series again.")
    return value
