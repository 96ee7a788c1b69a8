"""Which results the second stage of a cascade builds on, as a note beside its own; no network is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from utils.storage import read_record, write_json

NOTE = "previous_stage.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousStage:
    """The content of previous_stage.json: the results of the low resolution, from the folder of the file."""

    results: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNote:
    """A note, and the folder that it lies in."""

    folder: Path
    stage: PreviousStage

    @property
    def results(self) -> Path:
        """The results of the previous stage."""
        return (self.folder / self.stage.results).resolve()


def write_previous_stage(folder: Path, previous: Path) -> None:
    """Note beside the results of a cascade in `folder` which results its input comes from."""
    relative = os.path.relpath(previous.resolve(), folder.resolve())
    write_json(folder / NOTE, PreviousStage(results=relative))


def find_note(results: Path) -> FoundNote | None:
    """The note beside the results of a training, or above them, where its cross-validation keeps it."""
    here = results.resolve()
    for folder in (here, here.parent):
        if (folder / NOTE).is_file():
            return FoundNote(folder=folder, stage=read_record(PreviousStage, folder / NOTE))
    return None
