"""DICOM-SEG <-> masks on the slices of a series; read by pydicom, written by highdicom (optional)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_preprocessing.formats.dicom import DicomStack, decode
from data_preprocessing.formats.dicom_headers import (
    MASK_TAGS,
    PARSER_ERRORS,
    PER_FRAME,
    PIXEL_TAGS,
    SHARED,
    Frame,
    placed_frames,
    read_dicom,
)
from data_preprocessing.stored_bytes import check_voxel_bytes
from data_preprocessing.volume import LPS_TO_RAS, refuse
from utils.errors import EnvironmentFault
from utils.storage import atomic_file

if TYPE_CHECKING:
    from pydicom import Dataset

PLACE_TOLERANCE = 0.05  # voxels; how far a mask's pixel may lie beside the image's
FRACTION_INSIDE = 0.5  # of a fractional segment, from which a voxel belongs to it
PRODUCT = "multitask-nnunet-dali"
SERIES_OFFSET = 1000  # of the number of the new series from that of the images
GENERIC_PROPERTY = ("85756007", "SCT", "Tissue")  # SNOMED CT
MAX_LABEL = 64  # characters of a segment's name in DICOM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceMask:
    """One structure on one slice; `inside` is (rows, columns), boolean."""

    structure: str
    slice_index: int
    inside: np.ndarray


def segment_names(path: Path) -> dict[int, str]:
    """Segment number -> name, without the background of a label map."""
    return _names(read_dicom(path, tags=MASK_TAGS), path)


def seg_slices(path: Path, stack: DicomStack) -> Iterator[SliceMask]:
    """The segments of a SEG object, slice by slice, on the grid of the image's `stack`.

    Raises VolumeError where a frame does not lie on a slice of the image: nothing is resampled.
    """
    data = read_dicom(path, tags=[*MASK_TAGS, *PIXEL_TAGS])
    names = _names(data, path)
    frames = placed_frames(data, path)
    check_voxel_bytes((*frames[0].shape, len(frames)), 4, path)
    decoded = decode(data, path, frames[0].shape)
    kind = str(data.get("SegmentationType", "BINARY"))
    scale = float(data.get("MaximumFractionalValue", None) or 1) if kind == "FRACTIONAL" else 1.0
    to_voxel = np.linalg.inv(LPS_TO_RAS @ stack.affine)
    for frame in frames:
        place = _slice_of(frame, stack, to_voxel, path)
        pixels = decoded[frame.index]
        if kind == "LABELMAP":
            for number in sorted(set(np.unique(pixels).tolist()) & set(names)):
                yield SliceMask(structure=names[number], slice_index=place, inside=pixels == number)
        else:
            name = names[_segment_of(data, frame.index, path)]
            yield SliceMask(structure=name, slice_index=place, inside=pixels / scale >= FRACTION_INSIDE)


def write_seg(path: Path, mask: np.ndarray, stack: DicomStack, names: Sequence[str]) -> None:
    """A mask (x, y, z) on the grid of the series as a binary SEG; `names[i]` is the name of value i + 1.

    Needs highdicom. Patient and study are copied from the series, as the standard demands.
    """
    if find_spec("highdicom") is None:
        raise EnvironmentFault(
            "DICOM-SEG is written by highdicom, which is not installed. pip install -r requirements-dicom.txt"
        )
    if not mask.any():
        what = "the mask is empty, and a DICOM-SEG without any segment means nothing."
        raise refuse("W301", path, what, "leave this case out.")
    files = list(dict.fromkeys(frame.file for frame in stack.frames))
    planes = mask.transpose(2, 1, 0).astype(np.uint8)
    if len(files) == 1:
        planes = planes[np.argsort([frame.index for frame in stack.frames])]
    sources = [_source(file) for file in files]
    try:
        with warnings.catch_warnings():
            # highdicom comments on unusual fields of the series and would print the patient's name.
            warnings.simplefilter("ignore")
            written = _segmentation(sources, planes, names)
    except PARSER_ERRORS as error:
        what = f"highdicom makes no DICOM-SEG of this series: {type(error).__name__}: {error}"
        raise refuse("E212", files[0], what, "mend the series' header, or use the NIfTI mask.") from error
    with atomic_file(path) as stream:
        written.save_as(stream)


def _source(file: Path) -> Dataset:
    """A slice of the series as highdicom takes it: an empty character set is none."""
    source = read_dicom(file)
    if "SpecificCharacterSet" in source and not source.SpecificCharacterSet:
        del source.SpecificCharacterSet
    return source


def _segmentation(sources: Sequence[Dataset], planes: np.ndarray, names: Sequence[str]) -> Dataset:
    """`planes` (frames, rows, columns) uint8 in the order of the source images or of their frames."""
    import highdicom

    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=planes,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(number, name) for number, name in enumerate(names, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=int(sources[0].get("SeriesNumber", None) or 0) + SERIES_OFFSET,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions="1",
        device_serial_number="0",
    )


def _described(number: int, name: str) -> Any:
    """What the object says about one segment: its name; a name alone tells no more than that it is tissue."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:MAX_LABEL],
        segmented_property_category=Code(*GENERIC_PROPERTY),
        segmented_property_type=Code(*GENERIC_PROPERTY),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=PRODUCT, family=codes.DCM.ArtificialIntelligence, version="1"
        ),
    )


def _names(data: Dataset, path: Path) -> dict[int, str]:
    try:
        named = {
            int(item.SegmentNumber): str(item.get("SegmentLabel", "")).strip()
            for item in data.get("SegmentSequence", None) or ()
        }
    except PARSER_ERRORS as error:
        raise refuse("E202", path, f"a segment has no number ({error}).", "export the SEG again.") from error
    named.pop(0, None)
    if not named or not all(named.values()) or len(set(named.values())) != len(named):
        what = f"the segments are named {list(named.values())}; each needs a name of its own."
        raise refuse("E202", path, what, "export the SEG again with a name for each segment.")
    return named


def _segment_of(data: Dataset, index: int, path: Path) -> int:
    groups = [data[PER_FRAME].value[index], *(data.get(SHARED, None) or ())]
    for group in groups:
        items = group.get("SegmentIdentificationSequence", None)
        if items and (number := items[0].get("ReferencedSegmentNumber", None)) is not None:
            return int(number)
    raise refuse("E202", path, f"frame {index} says not which segment it shows.", "export the SEG again.")


def _slice_of(frame: Frame, stack: DicomStack, to_voxel: np.ndarray, path: Path) -> int:
    """The slice of the image that the frame lies on, pixel on pixel."""
    image = stack.frames[0]
    column, row, place = (to_voxel @ np.append(frame.position, 1.0))[:3]
    is_turned = np.abs(frame.orientation - image.orientation).max() > PLACE_TOLERANCE / max(image.shape)
    is_scaled = not np.allclose(
        frame.pixel_mm, image.pixel_mm, rtol=PLACE_TOLERANCE / max(image.shape), atol=0
    )
    is_beside = max(abs(column), abs(row), abs(place - round(place))) > PLACE_TOLERANCE
    if (
        frame.shape != image.shape
        or is_turned
        or is_scaled
        or is_beside
        or not 0 <= round(place) < stack.shape[2]
    ):
        what = (
            f"frame {frame.index} of {frame.shape} pixels lies at pixel ({column:.4g}, {row:.4g}) of slice "
            f"{place:.4g} of the image, which has {stack.shape[2]} slices of {image.shape} pixels."
        )
        fix = "give the series that the mask was drawn on, or resample the mask to it with another tool."
        raise refuse("E307", path, what, fix)
    return round(place)
