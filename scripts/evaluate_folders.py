"""The reference systems' three evaluations of two folders: classification, segmentation, whole organ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.contracts import Dataset
from utils.errors import DatasetError, UserError
from utils.options import parse
from utils.ranges import check_jobs, check_number
from utils.run_log import say

if TYPE_CHECKING:
    from nnunet.evaluation.class_answers import PredictedClasses
    from nnunet.evaluation.overlap import CaseOverlap, OverlapRules
    from scripts.class_references import ReferenceClasses
    from scripts.mask_pairs import References

COMMANDS = {
    "classification": "Precision, recall and F1 of each class, and all that belongs to it.",
    "segmentation": "Dice of each label.",
    "whole_organ": "Dice of all labels merged into one organ.",
}
WHOLE_ORGAN_FILE = "whole_pancreas_summary.json"
SURFACE_FILE = "surface_metrics.csv"
NIFTI_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")  # nnU-Net's names


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """What is compared with what."""

    reference: Path
    """Also the first word behind the command: a dataset, a folder of masks or subtypeN folders, or a table of
    classes."""
    predictions: Path
    """Also the second word: the folder of the predictions, or their table."""
    djfile: Path | None = field(default=None, metadata={"aliases": ("-djfile",)})
    """dataset.json with the names of labels and classes; unset: the one in the reference or above it."""
    pfile: Path | None = field(default=None, metadata={"aliases": ("-pfile",)})
    """The model's plan.json, for these names where --djfile is unset, else it must agree; or nnU-Net's
    plans.json, whose files must be NIfTI."""
    output: Path | None = field(default=None, metadata={"aliases": ("-o",)})
    """Folder for the results; unset: that of the predictions."""
    splits: Path | None = None
    """splits_final.json: only the validation cases of --fold."""
    fold: int = 0
    """Fold of --splits."""

    def folder(self) -> Path:
        """Where the results go."""
        where = self.predictions
        return self.output or (where.parent if where.is_file() else where)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationOptions:
    """Options of `classification`."""

    compared: FolderOptions
    class_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ... in the results."""
    seed: int = 0
    """Seed of the bootstrap intervals."""

    def __post_init__(self) -> None:
        """UserError for a seed that no generator takes."""
        check_number("seed", self.seed, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """Options of `segmentation` and `whole_organ`."""

    compared: FolderOptions
    empty: Literal["nan", "one"] = "nan"
    """Dice of a label that is empty in reference and prediction: nan (left out, as in nnU-Net) or one."""
    allow_missing: bool = False
    """Score a case without a prediction as a failure (Dice and surface Dice 0) instead of stopping."""
    surface_mm: float | None = None
    """Also measure surfaces: surface Dice with this tolerance in mm, HD95, mean distance."""
    n_jobs: int = field(default=-1, metadata={"aliases": ("-np",)})
    """Cases read at the same time; -1 is one per core."""

    def __post_init__(self) -> None:
        """UserError for numbers that no evaluation can have."""
        check_number("surface_mm", self.surface_mm, least=0)
        check_jobs(self.n_jobs)


def run_command_line(command: str, words: Sequence[str]) -> Path:
    """Parse what stands behind `command`: REFERENCE PREDICTIONS, then options; the path of the result."""
    program = f"evaluate.py {command}"
    usage = f"{program} REFERENCE PREDICTIONS [options]"
    leading = list(takewhile(lambda word: not word.startswith("-"), words))
    if len(leading) not in (0, 2):
        raise UserError(f"{program} needs two places behind it, got {leading}. Usage: {usage}")
    named = zip(("--reference", "--predictions"), leading, strict=False)
    tokens = [*(token for pair in named for token in pair), *words[len(leading) :]]
    description = f"{COMMANDS[command]} Usage: {usage}"
    if command == "classification":
        options = parse(ClassificationOptions, tokens, program=program, description=description)
        return evaluate_classes(options)
    masks = parse(MaskOptions, tokens, program=program, description=description)
    return evaluate_masks(masks, is_whole_organ=command == "whole_organ")


def evaluate_classes(options: ClassificationOptions) -> Path:
    """Write classification_metrics.json and print its tables."""
    import numpy as np

    from nnunet.evaluation.bootstrap import Resampling
    from nnunet.evaluation.class_answers import find_class_answers, read_class_answers
    from scripts.class_evaluation import ClassAnswers, measure_classes, print_classes, write_class_metrics
    from scripts.class_references import class_targets, find_reference_classes

    compared = options.compared
    described = _description(compared)
    references = _of_fold(find_reference_classes(compared.reference), compared)
    source = find_class_answers(compared.predictions)
    names = _names_to_read(references, source, options.class_names, described)
    answers = read_class_answers(source, names)
    rows = _rows_of(answers, references)
    result = measure_classes(
        ClassAnswers(
            class_names=_names_to_show(names, options.class_names),
            class_target=np.array(class_targets(references.texts, names, references.source)),
            predicted=answers.predicted[rows],
            class_probs=None if answers.class_probs is None else answers.class_probs[rows],
            volumes_ml=None if answers.volumes_ml is None else answers.volumes_ml[rows],
        ),
        Resampling(seed=options.seed, groups=references.groups()),
    )
    say(f"References: {references.source}; predictions: {answers.source}")
    path = write_class_metrics(compared.folder(), result)
    print_classes(result)
    print(f"{path} is written.")
    return path


def evaluate_masks(options: MaskOptions, *, is_whole_organ: bool) -> Path:
    """Write summary.json and metrics.csv, or whole_pancreas_summary.json, and print the table."""
    from nnunet.evaluation.pairing import masks_in, pair_masks
    from nnunet.evaluation.summary import (
        SUMMARY_FILE,
        nnunet_summary,
        summarise_segmentation,
        whole_organ_summary,
    )
    from nnunet.evaluation.tables import write_overlap_table
    from scripts.evaluation_page import print_overlap, report_notes
    from scripts.mask_pairs import measure_pairs, rules_for
    from utils.storage import write_json

    compared = options.compared
    references = _reference_masks(compared)
    predictions = masks_in(compared.predictions)
    pairing = pair_masks(predictions, references.masks, allow_missing=options.allow_missing)
    rules = rules_for(references, options.empty, options.n_jobs)
    cases = measure_pairs(pairing.pairs, rules, options.n_jobs)
    folder = compared.folder()
    if is_whole_organ:
        cases = tuple(replace(case, structures=()) for case in cases)
        write_json(folder / WHOLE_ORGAN_FILE, whole_organ_summary(cases))
    else:
        write_json(folder / SUMMARY_FILE, nnunet_summary(cases))
        write_overlap_table(folder / "metrics.csv", cases)
    for note in report_notes(pairing):
        print(note)
    print_overlap(summarise_segmentation(cases, empty=options.empty))
    if options.surface_mm is not None:
        _measure_surfaces(cases, rules, folder, options)
    path = folder / (WHOLE_ORGAN_FILE if is_whole_organ else SUMMARY_FILE)
    print(f"{path} is written.")
    return path


def _measure_surfaces(
    cases: Sequence[CaseOverlap], rules: OverlapRules, folder: Path, options: MaskOptions
) -> None:
    from scripts.surface_pairs import measure_surfaces, print_surfaces, write_surface_table

    assert options.surface_mm is not None  # the caller asked
    rows = measure_surfaces(cases, rules, options.surface_mm, options.n_jobs)
    write_surface_table(folder / SURFACE_FILE, rows)
    print_surfaces(rows, options.surface_mm)


def _reference_masks(compared: FolderOptions) -> References:
    """Masks of a folder, a dataset or subtypeN folders, of one fold, and what describes them."""
    from data_preprocessing.faults import DatasetFaults, errors_of
    from data_preprocessing.pancreas_challenge import has_subtype_folders, subtype_files
    from scripts.mask_pairs import References, find_references, select_fold
    from utils.errors import Fault

    if has_subtype_folders(compared.reference):
        faults: list[Fault] = []
        files = subtype_files(compared.reference, faults)
        if errors := errors_of(faults):
            raise DatasetFaults(errors)
        masks = {file.case_id: file.path for file in files if not file.is_image}
        references = References(masks=masks, dataset=None)
    else:
        references = find_references(compared.reference, None)
    described = _description(compared)
    return select_fold(
        replace(references, dataset=described or references.dataset), compared.splits, compared.fold
    )


def _description(compared: FolderOptions) -> Dataset | None:
    """What --djfile or --pfile says; None where neither is given, or only nnU-Net's plans."""
    from data_preprocessing.dataset import describe_dataset
    from data_preprocessing.faults import DatasetFaults, errors_of

    dataset = None
    if compared.djfile is not None:
        path = compared.djfile
        reading = describe_dataset(path.parent if path.is_file() else path)
        dataset = reading.dataset
        if not dataset.label_names:
            raise DatasetFaults(errors_of(reading.faults))
    planned = None if compared.pfile is None else _dataset_of_plan(compared.pfile)
    if dataset and planned and dataset.label_names != planned.label_names:
        raise UserError(
            f"--djfile has the labels {list(dataset.label_names)}, --pfile {list(planned.label_names)}. "
            "Give the two files of one dataset."
        )
    return dataset or planned


def _dataset_of_plan(path: Path) -> Dataset | None:
    """Names of labels and classes from our plan.json; None for nnU-Net's plans.json, which holds none."""
    from utils.contracts import Plan
    from utils.storage import from_plain, read_json

    data = read_json(path)
    if isinstance(data, dict) and "image_reader_writer" in data:
        if data["image_reader_writer"] not in NIFTI_READERS:
            raise UserError(
                f"{path}: the files are written by {data['image_reader_writer']}; only NIfTI is read here."
            )
        return None
    plan = from_plain(Plan, data, source=str(path))
    return Dataset(
        name=plan.dataset,
        root=path.parent,
        channel_names=plan.channel_names,
        label_names=plan.label_names,
        class_names=plan.class_names,
        class_title="",
        training=(),
        test=(),
        regions=plan.regions,
        region_names=plan.region_names,
        regions_class_order=plan.regions_class_order,
        ignore_label=plan.ignore_label,
    )


def _of_fold(references: ReferenceClasses, compared: FolderOptions) -> ReferenceClasses:
    from utils.splits import no_such_fold, read_folds

    if compared.splits is None:
        return references
    folds = read_folds(compared.splits)
    if not 0 <= compared.fold < len(folds):
        raise DatasetError(no_such_fold(compared.splits, len(folds), compared.fold))
    return references.only(sorted(folds[compared.fold].val))


def _names_to_read(
    references: ReferenceClasses, source: Path, wanted: Sequence[str], described: Dataset | None
) -> tuple[str, ...]:
    """The classes as the files call them, in the order of their indices."""
    from data_preprocessing.class_table import MISSING_TEXTS
    from nnunet.evaluation.class_answers import names_in, texts_in

    known = (described.class_names if described else ()) or references.names or names_in(source)
    if known:
        return tuple(known)
    texts = {
        text for text in (*references.texts.values(), *texts_in(source)) if text.lower() not in MISSING_TEXTS
    }
    if texts and all(text.isdecimal() for text in texts):
        # An index below the highest is a class too, though no case shows it.
        highest = max(len(wanted) - 1, *(int(text) for text in texts))
        return tuple(str(index) for index in range(highest + 1))
    return tuple(wanted) or tuple(sorted(texts))


def _names_to_show(names: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    if wanted and len(wanted) != len(names):
        raise UserError(f"--class_names gives {len(wanted)} names for {len(names)} classes: {list(names)}.")
    if len(set(wanted)) != len(wanted):
        raise UserError(f"--class_names repeats a name: {list(wanted)}.")
    return wanted or names


def _rows_of(answers: PredictedClasses, references: ReferenceClasses) -> list[int]:
    """Where the answer to each reference stands; missing ones are an error, others are told."""
    from nnunet.evaluation.pairing import listed

    place = {case_id: row for row, case_id in enumerate(answers.case_ids)}
    if missing := sorted(set(references.texts) - set(place)):
        raise DatasetError(
            f"{answers.source} lacks the class of {len(missing)} of {len(references.texts)} cases: "
            f"{listed(missing)}. Predict them, or name the fold with --splits and --fold."
        )
    if surplus := sorted(set(place) - set(references.texts)):
        print(f"Predictions without a reference, not scored: {listed(surplus)}.")
    return [place[case_id] for case_id in references.texts]
