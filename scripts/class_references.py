"""The reference class of each case: from a dataset, a table, subtype folders, or masks beside a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_preprocessing.case_columns import CLASS_FILES, Cell, find_class_file, read_class_file
from data_preprocessing.class_table import MISSING_TEXTS
from data_preprocessing.dataset import describe_dataset, read_dataset
from data_preprocessing.faults import DatasetFaults, errors_of
from data_preprocessing.pancreas_challenge import has_subtype_folders, subtype_files
from nnunet.evaluation.class_answers import class_index
from nnunet.evaluation.pairing import listed, masks_in
from utils.contracts import NO_CLASS, Dataset
from utils.errors import DatasetError, Fault

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceClasses:
    """Case -> class as text, in the order of the cases; `names` are the classes a dataset lists."""

    source: Path
    texts: dict[str, str]
    names: tuple[str, ...] = ()
    patients: dict[str, str] = field(default_factory=dict)

    def only(self, case_ids: Sequence[str]) -> ReferenceClasses:
        """The same for some cases; one without a class is an error."""
        if missing := sorted(set(case_ids) - set(self.texts)):
            raise DatasetError(f"{self.source} has no class for {len(missing)} cases: {listed(missing)}.")
        texts = {case_id: self.texts[case_id] for case_id in case_ids}
        return ReferenceClasses(source=self.source, texts=texts, names=self.names, patients=self.patients)

    def groups(self) -> tuple[str, ...]:
        """The patient of each case; a case of an unknown patient is its own."""
        return tuple(self.patients.get(case_id, case_id) for case_id in self.texts)


def find_reference_classes(path: Path) -> ReferenceClasses:
    """The classes that `path` tells of.

    A table (.csv or .json), a dataset with its dataset.json, a folder of subtypeN folders, a folder of
    masks whose classes stand in it or in the folder above, or a folder with a table alone. A case with two
    classes, or a mask without one, is an error that names it.
    """
    if path.is_file():
        return ReferenceClasses(source=path, texts=_texts(_read(path)))
    if not path.is_dir():
        raise DatasetError(f"{path} does not exist.")
    if (path / DESCRIPTION_FILE).is_file():
        return _of_dataset(path, read_dataset(path))
    if has_subtype_folders(path):
        return _of_subtype_folders(path)
    masks = masks_in(path)
    above = path.resolve().parent
    if masks and (above / DESCRIPTION_FILE).is_file():
        # Masks that lie apart, as in labelsVal, are no training cases: only the table has their classes.
        described = _of_dataset(above, describe_dataset(above).dataset)
        table = find_class_file(above)
        texts = ({} if table is None else _texts(_read(table))) | described.texts
        found = ReferenceClasses(
            source=table or above, texts=texts, names=described.names, patients=described.patients
        )
        return found.only(sorted(masks))
    table = find_class_file(path) or (find_class_file(above) if masks else None)
    if table is None:
        raise DatasetError(
            f"{path} tells no classes: it has no {DESCRIPTION_FILE}, no {', '.join(CLASS_FILES)}, and no "
            "folders subtype0, subtype1, ..."
        )
    found = ReferenceClasses(source=table, texts=_texts(_read(table)))
    return found.only(sorted(masks)) if masks else found


def class_targets(texts: Mapping[str, str], class_names: Sequence[str], source: Path) -> list[int]:
    """Class index of each case, NO_CLASS where the text says that it is unknown; other texts are an error."""
    targets = []
    for case_id, text in texts.items():
        index = NO_CLASS if text.lower() in MISSING_TEXTS else class_index(text, class_names)
        if index is None:
            raise DatasetError(
                f"{source}: case {case_id} has the class {text!r}, which is none of {list(class_names)}."
            )
        targets.append(index)
    return targets


def _of_dataset(root: Path, dataset: Dataset) -> ReferenceClasses:
    cases = (*dataset.training, *dataset.test)
    return ReferenceClasses(
        source=root,
        texts={
            case.case_id: dataset.class_names[case.class_target]
            for case in cases
            if case.class_target is not None
        },
        names=dataset.class_names,
        patients={case.case_id: case.patient_id for case in cases},
    )


def _of_subtype_folders(path: Path) -> ReferenceClasses:
    faults: list[Fault] = []
    texts: dict[str, str] = {}
    for file in subtype_files(path, faults):
        text = str(file.subtype)
        if texts.setdefault(file.case_id, text) != text:
            raise DatasetError(
                f"{path}: case {file.case_id} lies in subtype{texts[file.case_id]} and in {file.path}."
            )
    if errors := errors_of(faults):
        raise DatasetFaults(errors)
    return ReferenceClasses(source=path, texts=dict(sorted(texts.items())))


def _read(file: Path) -> dict[str, Cell]:
    faults: list[Fault] = []
    cells = read_class_file(file, faults)
    if errors := errors_of(faults):
        raise DatasetFaults(errors)
    return cells


def _texts(cells: Mapping[str, Cell]) -> dict[str, str]:
    return {case_id: cells[case_id].text for case_id in sorted(cells)}
