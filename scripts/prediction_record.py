"""What a folder of predictions says about itself: a row per finished case, and which models wrote them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from data_preprocessing.volume_io import mask_ending
from scripts.model_postprocessing import Chosen
from scripts.model_run import PredictionRow, write_predictions_table
from scripts.prediction_arrays import ArrayFiles
from scripts.previous_stage import Stages
from scripts.run_options import RunOptions
from utils.contracts import Plan, RawCase
from utils.errors import DatasetError, UserError
from utils.options import describe
from utils.storage import read_json, to_plain

TABLE, RECORD = "predictions.csv", "run.json"
CLASS_COLUMN, VOLUME_COLUMN, WINNER_COLUMN = "prob_", "volume_ml_", "predicted_class"
# Options that change an answer, beside the networks and the postprocessing.
ANSWERING = ("tta", "overlap", "blend", "classifier", "class_vote", "amp", "mirror_left_right", "predictor")


@final
class PredictionTable:
    """predictions.csv, whole on the disk after every case: a killed prediction has told what it finished."""

    def __init__(self, path: Path, plan: Plan, rows: Sequence[PredictionRow] = ()) -> None:
        self.path = path
        self.plan = plan
        self._rows = {row.case_id: row for row in rows}

    @property
    def rows(self) -> tuple[PredictionRow, ...]:
        """By case, in the order of the names."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    def add(self, row: PredictionRow) -> None:
        """Write the table with a further case, whose other files are on the disk already."""
        self._rows[row.case_id] = row
        self.write()

    def write(self) -> None:
        """Write the table as it is."""
        write_predictions_table(self.path, self.rows, self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Which files a case has when it is finished, in which folder, and who may have written them."""

    folder: Path
    arrays: ArrayFiles
    has_masks: bool
    maker: Mapping[str, Any]

    def rows(self, scans: Sequence[RawCase], plan: Plan) -> tuple[PredictionRow, ...]:
        """The rows of those scans whose mask, arrays and row are all there.

        UserError where a run of other models or options wrote into the folder.
        """
        known: dict[str, PredictionRow] = {}
        for table in sorted(self.folder.glob(f"{Path(TABLE).stem}*.csv")):
            part = table.stem.removeprefix(Path(TABLE).stem)
            record = self.folder / f"{Path(RECORD).stem}{part}.json"
            if record.is_file():
                _refuse_other_maker(record, self.maker)
                known |= {row.case_id: row for row in read_rows(table, plan)}
        return tuple(
            replace(known[scan.case_id], mask_ending=mask_ending(scan.images[0]))
            for scan in scans
            if scan.case_id in known and all(path.is_file() for path in self._files(scan))
        )

    def _files(self, scan: RawCase) -> tuple[Path, ...]:
        if not self.has_masks:
            return ()
        mask = self.folder / f"{scan.case_id}{mask_ending(scan.images[0])}"
        return (mask, *self.arrays.paths(self.folder, scan.case_id))


def maker_of(options: RunOptions, stages: Stages, chosen: Chosen) -> dict[str, Any]:
    """What decides an answer, in plain values: the weights of all stages, the options, the postprocessing."""
    ensembles = [ensemble for ensemble in (stages.last, stages.previous) if ensemble is not None]
    values = describe(options)
    return {
        "networks": [name for ensemble in ensembles for name in ensemble.networks()],
        "postprocessing": to_plain(chosen.steps),
        **{f"--{name}": values[name] for name in ANSWERING},
    }


def read_rows(path: Path, plan: Plan) -> tuple[PredictionRow, ...]:
    """The rows of a predictions.csv; DatasetError where it is not one of this plan's classes and regions."""
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        columns = tuple(table.fieldnames or ())
        probs = [name for name in columns if name.startswith(CLASS_COLUMN)]
        volumes = [name for name in columns if name.startswith(VOLUME_COLUMN)]
        classes = (*(f"{CLASS_COLUMN}{name}" for name in plan.class_names), WINNER_COLUMN) if probs else ()
        sizes = tuple(f"{VOLUME_COLUMN}{name}" for name in plan.target_names) if volumes else ()
        if columns != ("case", *classes, *sizes):
            raise DatasetError(
                f"{path} has the columns {', '.join(columns)[:200]}, which are not those of this model. "
                "Predict into another folder."
            )
        return tuple(
            PredictionRow(
                case_id=row["case"],
                class_probs=tuple(float(row[name]) for name in probs),
                volumes_ml=tuple(float(row[name]) for name in volumes),
            )
            for row in table
        )


def _refuse_other_maker(record: Path, maker: Mapping[str, Any]) -> None:
    found: Any = read_json(record)
    before: Any = found.get("maker") if isinstance(found, dict) else None
    if before == maker:
        return
    changed = sorted(
        name for name in maker if not isinstance(before, dict) or before.get(name) != maker[name]
    )
    raise UserError(
        f"{record}: the predictions there were made with other {', '.join(changed)} than this command's; its "
        "own would be mixed with them. Give another -o, or predict all again without --continue_prediction."
    )
