"""The table of everything that can be wrong with a dataset, and the errors that carry such faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.errors import DatasetError, Fault

FAULT_CODES = {
    "E101": "dataset.json is missing, damaged or not an object",
    "E102": "a known key of dataset.json is misspelt",
    "E103": "a value in dataset.json has the wrong type",
    "E104": "channels are not described as 0, 1, 2, ...",
    "E105": "labels have a gap, a duplicate, no background or a value above 255",
    "E106": "regions and regions_class_order do not belong together",
    "E107": "a case id is not made of letters, digits, '.', '_' and '-'",
    "E108": "a case occurs twice, or two ids differ only by letter case",
    "E109": "a listed file is missing",
    "E110": "a path leaves the dataset folder",
    "E111": "an image file lacks its channel number, such as _0000",
    "E112": "a case has other channels than the dataset declares",
    "E113": "the dataset has no training case",
    "E121": "the class table or the group table cannot be read",
    "E122": "a case has two rows in a table",
    "E123": "a class is not in the list of classes",
    "E124": "a case has no class or no group",
    "E125": "the classification or grouping block is not valid",
    "E201": "a file is missing, empty, unreadable or not a plain file",
    "E202": "a file is not an image of the format that its name says",
    "E203": "a file is cut off",
    "E204": "a compressed file is damaged",
    "E205": "the voxel type is not supported",
    "E206": "the dimensions are not those of a volume",
    "E207": "a volume is larger than the limit, or data follow the voxels",
    "E208": "the offset of the voxels is out of range",
    "E209": "the spacing is not a usable length",
    "E210": "the affine is not finite, not invertible or sheared",
    "E211": "the slices of a DICOM series form no volume: mixed, tilted, missing or repeated",
    "E212": "a DICOM file cannot be decoded, or a package for it is missing",
    "E301": "an image holds NaN or infinity",
    "E302": "an image is constant",
    "E303": "a label volume holds fractions, NaN or infinity",
    "E304": "a label volume holds values that the dataset does not declare",
    "E305": "the number of channels differs from the dataset",
    "E306": "image and label, or two channels, differ in shape",
    "E307": "image and label, or two channels, differ in geometry",
    "E308": "two cases hold the same image",
    "E309": "a declared label occurs in no case",
    "W101": "files are present that the dataset does not list",
    "W102": "numTraining differs from the number of cases",
    "W103": "the listed test images are not there",
    "W201": "the name says compressed and the file is not, or the other way round",
    "W202": "qform and sform disagree; the sform is used",
    "W203": "a spacing is negative; its absolute value is used",
    "W204": "unsigned voxels look like wrapped negative numbers",
    "W205": "a TIFF volume comes without its spacing; 1 mm is assumed",
    "W301": "a label volume is empty",
    "W302": "one of several channels is constant",
    "W303": "a file has no orientation, so only shape and spacing are compared",
}

DATASET_WIDE = "-"  # stands where a case id would, for a fault that belongs to no single case


class VolumeError(DatasetError):
    """One file cannot be used as a volume; `fault` says which, why and what to do."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        if self.fault.case_id != DATASET_WIDE:
            return str(self.fault)
        return f"{self.fault.code} {self.fault.file}: {self.fault.what} Fix: {self.fault.fix}"


class DatasetFaults(DatasetError):  # noqa: N818  one exception for many faults
    """Everything that was found wrong, raised together; prints one line per fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


def make_fault(code: str, file: Path | str, what: str, fix: str, case_id: str = DATASET_WIDE) -> Fault:
    """A fault of the table above; codes that start with W are warnings."""
    if code not in FAULT_CODES:
        raise KeyError(f"{code} is not in FAULT_CODES.")
    severity = "warning" if code.startswith("W") else "error"
    return Fault(code=code, case_id=case_id, file=str(file), what=what, fix=fix, severity=severity)


def errors_of(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """The faults that forbid the use of the data; warnings are left out."""
    return tuple(fault for fault in faults if fault.severity == "error")


def of_case(case_id: str, faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """The same faults, charged to one case."""
    return tuple(replace(fault, case_id=case_id) for fault in faults)
