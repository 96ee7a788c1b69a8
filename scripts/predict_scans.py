"""The story of prediction on raw scans: read, prepare, network, restore, mask, class, volumes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.cases import LoadedCase, load_case
from data_preprocessing.dataset import read_dataset
from data_preprocessing.prepare import PreparedArrays, prepare_case
from data_preprocessing.scans import read_scans
from data_preprocessing.volume_io import write_on_grid_of
from nnunet.evaluation.postprocessing import Step, postprocess
from scripts.class_output import write_class_output
from scripts.ensemble import Ensemble, ScanAnswer
from scripts.label_meaning import Meaning
from scripts.memory_check import too_large_scans
from scripts.model_postprocessing import choose_postprocessing
from scripts.model_run import PredictionRow, prediction_row
from scripts.prediction_arrays import ArrayFiles
from scripts.prediction_record import RECORD, TABLE, Finished, PredictionTable, maker_of
from scripts.prediction_shard import PredictionShard
from scripts.previous_stage import Stages, open_stages
from scripts.run_options import ALL_CASES, RunOptions
from utils.contracts import Plan, RawCase
from utils.errors import DatasetError
from utils.options import describe
from utils.prepared_folder import SPLITS
from utils.run_log import progress, say
from utils.splits import pick_fold, read_folds
from utils.storage import write_json

PREDICTIONS = "predictions"
MAX_PENDING = 2  # predictions that may wait for the disk; each holds a volume of probabilities


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadyScan:
    """A scan on the planned grids, or the reason why it is not."""

    case_id: str
    loaded: LoadedCase | None = None
    arrays: tuple[PreparedArrays, ...] = ()  # one for each of the models' ways to prepare
    error: DatasetError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the masks go, and what is cleaned from them; without a folder there are no masks."""

    folder: Path | None
    plan: Plan
    table: PredictionTable
    steps: tuple[Step, ...] = ()
    arrays: ArrayFiles = ArrayFiles()


def predict_scans(options: RunOptions) -> Path:
    """Predict every scan of `--input` into `--output`; a bad scan is reported and the others go on."""
    assert options.input is not None  # the caller chose this story because of it
    shard = PredictionShard.parse(options.shard)
    arrays = ArrayFiles.of(options)
    stages = open_stages(options)
    ensemble = stages.last
    scans = shard.share_of(_scans_of(options, stages)[: options.test_limit], lambda scan: scan.case_id)
    folder = options.output or options.results / PREDICTIONS
    chosen = choose_postprocessing(options.postprocessing, ensemble)
    maker = maker_of(options, stages, chosen)
    done: tuple[PredictionRow, ...] = ()
    if options.continue_prediction:
        finished = Finished(folder=folder, arrays=arrays, has_masks=ensemble.has_masks, maker=maker)
        done = finished.rows(scans, ensemble.plan)
        scans = _without(scans, done, folder)
    say(f"Predicting {len(scans)} scans on {ensemble.runs[0].device.type} into {folder}{_by(ensemble)}")
    started = time.perf_counter()
    table = PredictionTable(shard.file_of(folder / TABLE), ensemble.plan, done)
    target = Target(
        folder=folder if ensemble.has_masks else None,
        plan=ensemble.plan,
        table=table,
        steps=chosen.steps,
        arrays=arrays,
    )
    record = {
        "options": describe(options),
        "checkpoints": [member.checkpoint for member in ensemble.members],
        "postprocessing": {"file": chosen.file, "steps": chosen.steps},
        "maker": maker,
        "meaning": Meaning.of(ensemble.plan),
    }
    table.write()  # before the record: rows of other models never stand beside it
    write_json(shard.file_of(folder / RECORD), record | {"finished": False})
    failures = _predict(scans, stages, target)
    write_class_output(options.class_output or folder, table.rows, ensemble.plan, shard)
    seconds = time.perf_counter() - started
    ending = {"cases": len(table.rows), "failures": failures, "seconds": round(seconds, 3)}
    write_json(shard.file_of(folder / RECORD), record | {"finished": True} | ending)
    what = "masks" if ensemble.has_masks else "classes"
    say(
        f"{len(table.rows)} {what} and {table.path.name} in {folder}, "
        f"{seconds:.1f} s ({seconds / max(len(scans), 1):.2f} s per scan)"
    )
    if failures:
        raise DatasetError("\n".join(failures))
    return folder


def _without(scans: Sequence[RawCase], done: Sequence[PredictionRow], folder: Path) -> tuple[RawCase, ...]:
    """The scans that are left to predict; how many are not is said in one line."""
    names = [row.case_id for row in done]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        say(f"{len(names)} of {len(scans)} scans are predicted already in {folder} and skipped: {shown}.")
    return tuple(scan for scan in scans if scan.case_id not in set(names))


def _predict(scans: Sequence[RawCase], stages: Stages, target: Target) -> list[str]:
    """Write an answer for each scan that fits the memory; returns what is wrong with the others.

    One scan is read ahead and one restored and written behind while the network works on a third.
    """
    too_large = too_large_scans(scans, stages.plans)
    fitting = [scan for scan in scans if scan.case_id not in too_large]
    failures = list(too_large.values())
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as writer:
        for ready in progress(_ready_scans(fitting, stages.plans), total=len(fitting), label="Predict"):
            try:
                pending.append(writer.submit(_write, target, ready, _answer(stages, ready)))
            except DatasetError as error:
                failures.append(str(error))
            if len(pending) > MAX_PENDING:
                pending.popleft().result()
        for future in pending:
            future.result()
    return failures


def _by(ensemble: Ensemble) -> str:
    count = len(ensemble.members)
    return f" by {count} models" if count > 1 else ""


def _scans_of(options: RunOptions, stages: Stages) -> tuple[RawCase, ...]:
    """A scan, the scans of a folder, or the held-out cases of a raw dataset.

    The folds are the dataset's own, else those of the training in the results folder, or of the one that
    --ckpt_path is from; without folds, the test cases.
    """
    source, plan = options.input, stages.last.plan
    assert source is not None  # the caller chose this story because of it
    if not (source / "dataset.json").is_file():
        # The foreground channel is made here, it has no file.
        return read_scans(source, num_channels=plan.num_channels - int(plan.foreground_channel))
    dataset = read_dataset(source)
    beside = [member.results for member in stages.last.members] if options.ckpt_path else []
    folders = (source, options.results, *beside)
    splits = next((path for folder in folders if (path := folder / SPLITS).is_file()), None)
    if splits is None or options.fold == ALL_CASES:
        if not dataset.test:
            reason = f"there is no {SPLITS}" if splits is None else f"--fold {ALL_CASES} holds no case out"
            raise DatasetError(f"{source} has no test cases, and {reason}. Give a folder of scans.")
        return dataset.test
    cases = {case.case_id: case for case in dataset.training}
    patients = {case_id: case.patient_id for case_id, case in cases.items()}
    held_out = pick_fold(read_folds(splits), options.fold, patients=patients, source=splits).val
    stages.refuse_training_cases(held_out)
    # Without the label: prediction must not depend on it, nor stop because of it.
    return tuple(replace(cases[case_id], label=None) for case_id in sorted(held_out))


def _ready_scans(scans: Sequence[RawCase], plans: Sequence[Plan]) -> Iterator[ReadyScan]:
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(_prepare, scans[0], plans) if scans else None
        upcoming = iter(scans[1:])
        while ahead is not None:
            ready = ahead.result()
            following = next(upcoming, None)
            ahead = reader.submit(_prepare, following, plans) if following else None
            yield ready


def _prepare(scan: RawCase, plans: Sequence[Plan]) -> ReadyScan:
    try:
        loaded = load_case(scan)
        arrays = tuple(prepare_case(loaded, plan, mode="test") for plan in plans)
        return ReadyScan(case_id=scan.case_id, loaded=loaded, arrays=arrays)
    except DatasetError as error:
        return ReadyScan(case_id=scan.case_id, error=error)


def _answer(stages: Stages, ready: ReadyScan) -> ScanAnswer:
    if not ready.arrays:
        raise ready.error or DatasetError(f"Case {ready.case_id} could not be prepared.")
    return stages.answer(ready.arrays, ready.case_id)


def _write(target: Target, ready: ReadyScan, answer: ScanAnswer) -> None:
    """Mask and arrays first, then the row, which says that they are there."""
    loaded = ready.loaded
    assert loaded is not None  # _answer raises for a scan that could not be read
    mask = None
    if target.folder is not None:
        mask = postprocess(answer.mask(target.plan), target.steps)
        write_on_grid_of(loaded, target.folder / f"{ready.case_id}{loaded.mask_ending}", mask)
        target.arrays.write(target.folder, mask, answer, target.plan)
    row = prediction_row(answer.prediction, mask, loaded.spacing_mm, target.plan)
    target.table.add(replace(row, mask_ending=loaded.mask_ending))
