"""Synthetic DICOM series and structure sets of a few pixels, written by pydicom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

SPACING = (0.5, 0.75, 2.5)  # x, y, z
ORIGIN = (10.0, -20.0, 30.0)  # LPS
INTERCEPT = -1024
AFFINE = np.array([[-0.5, 0, 0, -10], [0, -0.75, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])  # RAS, of a series


def stored_voxels(shape: tuple[int, int, int] = (5, 4, 3)) -> np.ndarray:
    """(x, y, z) with a different number in every voxel."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) * 7


def write_object(path: Path, data: Dataset, kind: str) -> Path:
    """Save as explicit little endian; `kind` is the SOP class."""
    data.SOPClassUID = kind
    data.SOPInstanceUID = data.get("SOPInstanceUID", None) or generate_uid()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def study(modality: str, patient: str = "someone") -> Dataset:
    """What every object of a study holds."""
    data = Dataset()
    data.Modality = modality
    data.PatientID = patient
    data.PatientName = f"{patient}^"
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
        setattr(data, name, "")
    data.ReferringPhysicianName = ""
    data.StudyInstanceUID = generate_uid(entropy_srcs=[patient])
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=[patient, "frame"])
    return data


def write_series(
    folder: Path, voxels: np.ndarray, *, uid: str = "", number: int = 1, **changes: Any
) -> list[Path]:
    """One file per slice, in an order that is not the one of space; `changes` go into every header."""
    patient = changes.pop("patient", "someone")
    series = uid or generate_uid(entropy_srcs=[str(folder), str(number)])
    paths = []
    for index in range(voxels.shape[2]):
        data = study("CT", patient)
        data.SeriesInstanceUID = series
        data.SeriesNumber = number
        data.InstanceNumber = voxels.shape[2] - index
        data.Columns, data.Rows = voxels.shape[:2]
        data.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * index]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [SPACING[1], SPACING[0]]
        data.SliceThickness = SPACING[2]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelRepresentation = 1
        data.RescaleSlope, data.RescaleIntercept = 1, INTERCEPT
        data.PixelData = np.ascontiguousarray(voxels[:, :, index].T.astype(np.int16)).tobytes()
        for name, value in changes.items():
            setattr(data, name, value)
        paths.append(write_object(folder / f"IM{voxels.shape[2] - index:03d}", data, CTImageStorage))
    return paths


def change(path: Path, **values: Any) -> None:
    """Set elements of a file; None deletes one."""
    from pydicom import dcmread

    data = dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


def write_rtstruct(
    path: Path, series_uid: str, rois: dict[str, Sequence[Sequence[tuple[float, float, float]]]]
) -> Path:
    """A structure set: each ROI a list of closed contours, each of (x, y, z) points in LPS mm."""
    data = study("RTSTRUCT")
    data.SeriesInstanceUID = generate_uid()
    series = Dataset()
    series.SeriesInstanceUID = series_uid
    referenced_study = Dataset()
    referenced_study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.RTReferencedStudySequence = [referenced_study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    names, contours = [], []
    for number, (name, outlines) in enumerate(rois.items(), start=1):
        roi = Dataset()
        roi.ROINumber, roi.ROIName = number, name
        names.append(roi)
        drawn = Dataset()
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = []
        for points in outlines:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [value for point in points for value in point]
            drawn.ContourSequence.append(contour)
        contours.append(drawn)
    data.StructureSetROISequence, data.ROIContourSequence = names, contours
    return write_object(path, data, RTStructureSetStorage)
