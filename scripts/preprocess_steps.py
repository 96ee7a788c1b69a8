"""The steps of `preprocess`: find the work, check it, choose the plan, open the folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_preprocessing.dataset import describe_dataset, find_dataset, task_code
from data_preprocessing.dataset_splits import bring_splits
from data_preprocessing.faults import errors_of
from data_preprocessing.fingerprint import summarise
from data_preprocessing.integrity import CaseCheck, faults_across
from data_preprocessing.manifest import (
    FORMAT_VERSION,
    CaseInputs,
    Manifest,
    PlannedBy,
    current_inputs,
    outdated_cases,
    planner_hash,
    read_manifest,
    rules_hash,
    start_manifest,
)
from data_preprocessing.msd_presets import published_task
from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planners import check_options
from data_preprocessing.planning import NoConfigurationError, plan_experiment, with_regions
from data_preprocessing.prepare import with_foreground_channel
from data_preprocessing.prepared_check import damaged_cases
from data_preprocessing.survey import CaseSurvey
from data_preprocessing.workers import Recipe, survey_cases
from scripts.configurations import COARSE, SUFFIXES, single_configuration
from scripts.memory_check import check_reading
from scripts.named_plans import place_of, refuse_foreign
from scripts.preprocess_words import source_of_settings
from scripts.several_datasets import tasks_of
from scripts.transferred_plan import read_source, refuse_contradictions, transferred_plan
from utils import prepared_folder
from utils.contracts import Dataset, Fingerprint, Plan, RawCase
from utils.errors import DatasetError, Fault, StorageFault, UserError
from utils.prepared_folder import complete_case_ids
from utils.run_log import say
from utils.storage import read_record, write_json

if TYPE_CHECKING:
    from scripts.preprocess import PreprocessOptions
    from scripts.preprocess_plans import Choice

FAULTS = "faults.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done: which cases, into which folder, and what that folder holds already."""

    dataset: Dataset
    cases: tuple[RawCase, ...]
    faults: tuple[Fault, ...]  # of the description
    configuration: str
    base: Path  # <results>/<task>_<dim>d, the folder of plan.json
    plan_folder: Path  # where fingerprint and plan lie: `base`, or that of a plan with volumes of its own
    folder: Path
    before: Manifest | None


@contextmanager
def no_empty_folder(work: Work) -> Iterator[None]:
    """Whatever error ends the block, it leaves no folder that holds nothing."""
    try:
        yield
    except UserError:
        with suppress(OSError):  # what holds anything stays
            work.folder.rmdir()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The inputs of every case as they were read, and the fingerprint where it was asked for."""

    inputs: dict[str, CaseInputs]
    fingerprint: Fingerprint | None


def open_work(options: PreprocessOptions) -> Work:
    """Read the description of the dataset and look into the folder of the results."""
    (task,) = tasks_of(options)
    root = find_dataset(options.data, task)
    reading = describe_dataset(root, allow_external=options.allow_external)
    configuration = single_configuration(options)
    check_options(options.planner, configuration)
    refuse_contradictions(options)
    if options.plan_only and options.exec_mode != "training":
        raise UserError(f"--plan_only: --exec_mode {options.exec_mode} uses the plan that training made.")
    base = options.results / f"{task_code(root)}_{SUFFIXES[configuration]}"
    plan_folder = place_of(base, options)
    is_training = options.exec_mode == "training"
    if not is_training and configuration == COARSE and not (plan_folder / prepared_folder.PLAN).is_file():
        raise NoConfigurationError(f"{plan_folder} has no plan. Run preprocess.py first, in training mode.")
    folder = plan_folder if is_training else plan_folder / options.exec_mode
    cases = reading.dataset.test if options.exec_mode == "test" else reading.dataset.training
    if not cases and not errors_of(reading.faults):
        raise DatasetError(f"{root} has no cases for --exec_mode {options.exec_mode}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFault(f"{folder} cannot be created: {error.strerror}.") from error
    return Work(
        dataset=reading.dataset,
        cases=cases,
        faults=reading.faults,
        configuration=configuration,
        base=base,
        plan_folder=plan_folder,
        folder=folder,
        before=read_manifest(folder),
    )


def survey(work: Work, options: PreprocessOptions, cluster: Any = None) -> Findings:
    """Check the cases that changed since the last run; a training set that changed is measured as a whole.

    `cluster` is the client of a Dask cluster that does it, None for processes of this machine.
    """
    is_training = options.exec_mode == "training"
    if errors_of(work.faults):
        _report_faults(work, work.faults)
    # To verify is to trust no size and no time of a file: every case of the dataset is read.
    known = {} if options.verify_dataset_integrity else current_inputs(work.before, work.cases)
    if work.before is not None and len(work.before.cases) == len(work.cases) == len(known):
        if not is_training:
            return Findings(inputs=known, fingerprint=None)
        if (stored := _stored_fingerprint(work.plan_folder, work.dataset)) is not None:
            return Findings(inputs=known, fingerprint=stored)
    if is_training and not options.verify_dataset_integrity and (beside := _found_beside(work)) is not None:
        return beside
    pending = [case for case in work.cases if is_training or case.case_id not in known]
    if cluster is None:
        check_reading(pending, num_jobs=options.n_jobs)
    surveys = survey_cases(
        pending, work.dataset, num_jobs=options.n_jobs, is_measured=is_training, cluster=cluster
    )
    others = _other_cases(work) if options.verify_dataset_integrity else []
    more = survey_cases(others, work.dataset, num_jobs=options.n_jobs, is_measured=False, cluster=cluster)
    _report_faults(work, (*work.faults, *_case_faults(work, [*surveys, *more], is_training=is_training)))
    if options.verify_dataset_integrity:
        say(f"Read and checked all {len(pending) + len(others)} cases of {work.dataset.root}: no errors.")
    inputs = known | {item.check.case_id: item.inputs for item in surveys if item.inputs}
    measured = [item.measurement for item in surveys if item.measurement]
    return Findings(inputs=inputs, fingerprint=summarise(work.dataset, measured) if is_training else None)


def _other_cases(work: Work) -> list[RawCase]:
    """The cases of the dataset that this mode does not prepare."""
    here = {case.case_id for case in work.cases}
    return [case for case in (*work.dataset.training, *work.dataset.test) if case.case_id not in here]


def _stored_fingerprint(folder: Path, dataset: Dataset) -> Fingerprint | None:
    """The fingerprint in `folder`, where there is one that has the names of the dataset."""
    path = folder / prepared_folder.FINGERPRINT
    if not path.is_file():
        return None
    stored = read_record(Fingerprint, path)
    return stored if _describes(stored, dataset) else None


def _found_beside(work: Work) -> Findings | None:
    """What another configuration has found out of the very same cases: they need not be read again."""
    code = work.base.name.removesuffix(SUFFIXES[work.configuration])
    for suffix in SUFFIXES.values():
        folder = work.base.with_name(f"{code}{suffix}")
        before = read_manifest(folder)
        if before is None or len(before.cases) != len(work.cases):
            continue
        known = current_inputs(before, work.cases)
        stored = _stored_fingerprint(folder, work.dataset)
        if len(known) == len(work.cases) and stored is not None and stored.dataset == work.dataset.name:
            return Findings(inputs=known, fingerprint=stored)
    return None


def _describes(fingerprint: Fingerprint, dataset: Dataset) -> bool:
    """Whether the names that the fingerprint carries are still those of the dataset."""
    return (fingerprint.channel_names, fingerprint.label_names, fingerprint.class_names) == (
        dataset.channel_names,
        dataset.label_names,
        dataset.class_names,
    )


def _case_faults(work: Work, surveys: Sequence[CaseSurvey], *, is_training: bool) -> tuple[Fault, ...]:
    checks: list[CaseCheck] = [item.check for item in surveys]
    faults = [fault for check in checks for fault in check.faults]
    return (*faults, *(faults_across(work.dataset, checks) if is_training else ()))


def _report_faults(work: Work, faults: Sequence[Fault]) -> None:
    """Print one line per fault, keep them as JSON, and stop if one of them is an error."""
    file = work.folder / FAULTS
    if not faults:
        file.unlink(missing_ok=True)
        return
    for fault in faults:
        say(str(fault))
    write_json(file, list(faults))
    if errors := errors_of(faults):
        bad = len({fault.case_id for fault in errors})
        raise DatasetError(
            f"{work.dataset.root}: {len(errors)} errors in {bad} places, listed above and in {file}. "
            "Nothing was prepared."
        )


def choose_plan(work: Work, found: Findings, options: PreprocessOptions) -> Plan:
    """The plan in the folder where it still holds, else a new one; val and test take that of training."""
    path = work.plan_folder / prepared_folder.PLAN
    if options.exec_mode != "training" or (options.keep_plan and path.is_file()):
        return _stored_plan(work, path)
    has_same_options = work.before is not None and work.before.planner == options_hash(work, options)
    if has_same_options and path.is_file() and (work.plan_folder / prepared_folder.FINGERPRINT).is_file():
        if same_data(work, found):
            return _stored_plan(work, path)
        say("The dataset has changed since the last run, so it is planned anew (--keep_plan prevents that).")
    return new_plan(work, found, options)


def same_data(work: Work, found: Findings) -> bool:
    """Whether the folder's plan was made for the dataset as it is now."""
    path = work.plan_folder / prepared_folder.FINGERPRINT
    if not path.is_file() or read_record(Fingerprint, path) != found.fingerprint:
        return False
    return _has_labels_of(work.dataset, prepared_folder.read_plan(work.plan_folder))


def new_plan(work: Work, found: Findings, options: PreprocessOptions) -> Plan:
    """The plan of the dataset by the options, or by another plan."""
    assert found.fingerprint is not None  # a training set is measured
    if options.plan_from is not None:
        moved = transferred_plan(
            read_source(options.plan_from),
            found.fingerprint,
            configuration=work.configuration,
            foreground_channel=options.ohe,
            ignore_label=work.dataset.ignore_label,
        )
        return with_regions(moved, work.dataset)
    plan = plan_experiment(
        found.fingerprint,
        configuration=work.configuration,
        options=options.planner,
        ignore_label=work.dataset.ignore_label,
    )
    if options.planner.follows_table and (task := published_task(found.fingerprint)):
        say(source_of_settings(plan, task, options.planner))
    plan = with_regions(plan, work.dataset)
    return with_foreground_channel(plan) if options.ohe else plan


def _has_labels_of(dataset: Dataset, plan: Plan) -> bool:
    """Whether what the fingerprint does not carry (regions, ignore label, sides) is still the dataset's."""
    names = ("regions", "region_names", "regions_class_order", "ignore_label", "left_right_pairs")
    return all(getattr(plan, name) == getattr(dataset, name) for name in names)


def _stored_plan(work: Work, path: Path) -> Plan:
    plan = prepared_folder.read_plan(work.plan_folder)
    validate_plan(plan)
    refuse_foreign(plan, work.dataset, path)
    say(f"Using the plan in {path}.")
    return plan


def options_hash(work: Work, options: PreprocessOptions) -> str:
    """Hash of the options that a plan follows from, and of the plan that it is made from."""
    source = None if options.plan_from is None else read_source(options.plan_from)
    return planner_hash(
        options.planner, configuration=work.configuration, foreground_channel=options.ohe, source=source
    )


def start_folder(
    chosen: Choice, found: Findings, options: PreprocessOptions
) -> tuple[Recipe, list[tuple[RawCase, CaseInputs]]]:
    """Write the descriptions, remove what is out of date, and list the cases that are to be prepared."""
    work, plan = chosen.work, chosen.plan
    after = Manifest(
        version=FORMAT_VERSION,
        mode=options.exec_mode,
        dtype=chosen.dtype,
        rules=rules_hash(plan, mode=options.exec_mode),
        planner=chosen.planner,
        cases=tuple(found.inputs[case.case_id] for case in work.cases),
        plans=_plans_after(chosen),
    )
    outdated = set(outdated_cases(work.folder, work.before, after))
    kept = [case for case in work.cases if case.case_id not in outdated]
    damaged = {} if options.plan_only else damaged_cases(work.folder, kept, plan, dtype=chosen.dtype)
    if options.plan_only and (lost := outdated.intersection(complete_case_ids(work.folder))):
        raise UserError(
            f"--plan_only: {len(lost)} prepared cases of {work.folder} do not follow this plan and "
            "would be removed. Leave --plan_only away to prepare them anew, or give the plan another "
            "--plan_name."
        )
    outdated |= set(damaged)
    for case_id, fault in damaged.items():
        say(f"Case {case_id} is prepared anew. {fault}")
    write_json(work.folder / prepared_folder.PLAN, plan)
    if chosen.made is not None:
        write_json(prepared_folder.plan_file(work.folder, chosen.made.name), chosen.asked)
    if found.fingerprint is not None:
        write_json(work.folder / prepared_folder.FINGERPRINT, found.fingerprint)
    write_json(work.folder / prepared_folder.DATASET, work.dataset)
    copied = bring_splits(work.dataset.root, work.folder, work.before.splits if work.before else None)
    # The manifest last: until it is there, the next run sees the old state and decides again.
    start_manifest(work.folder, replace(after, splits=copied), outdated)
    recipe = Recipe(
        dataset=work.dataset, plan=plan, folder=work.folder, mode=options.exec_mode, dtype=chosen.dtype
    )
    return recipe, [(case, found.inputs[case.case_id]) for case in work.cases if case.case_id in outdated]


def _plans_after(chosen: Choice) -> tuple[PlannedBy, ...]:
    """The further plans that were made for this folder, the one of this run among them."""
    before = () if chosen.work.before is None else chosen.work.before.plans
    if chosen.made is None:
        return before
    return (*(entry for entry in before if entry.name != chosen.made.name), chosen.made)
