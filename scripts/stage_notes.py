"""What the second stage of a cascade builds on: the results of the first, as a note, and its masks."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from utils.contracts import Plan
from utils.errors import DatasetError
from utils.prepared_folder import CASCADE, DEFAULT_PLAN, LOWRES, PRIORS
from utils.storage import read_record, write_json

NOTE = "previous_stage.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousStage:
    """The content of previous_stage.json: the results of the low resolution, from the folder of the file.

    `networks` are the hashes of the weights whose masks the second stage has learned from, one for each fold;
    none where they are not known. `plan` is that of full resolution.
    """

    results: str
    networks: tuple[str, ...] = ()
    plan: str = DEFAULT_PLAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """Which network gave the masks of each fold's held-out cases, by the hash of its weights."""

    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNote:
    """A note, and the folder that it lies in."""

    folder: Path
    stage: PreviousStage

    @property
    def results(self) -> Path:
        """The results of the previous stage."""
        return (self.folder / self.stage.results).resolve()


def write_previous_stage(
    folder: Path, previous: Path, networks: tuple[str, ...] = (), plan: str = DEFAULT_PLAN
) -> None:
    """Note beside the results of a cascade in `folder` which results its input comes from."""
    relative = os.path.relpath(previous.resolve(), folder.resolve())
    write_json(folder / NOTE, PreviousStage(results=relative, networks=networks, plan=plan))


def find_note(results: Path) -> FoundNote | None:
    """The note beside the results of a training, or above them, where its cross-validation keeps it."""
    here = results.resolve()
    for folder in (here, here.parent):
        if (folder / NOTE).is_file():
            return FoundNote(folder=folder, stage=read_record(PreviousStage, folder / NOTE))
    return None


def read_priors(folder: Path) -> Priors | None:
    """Whose masks lie in a prepared folder; None where there are none, or not all of them."""
    path = folder / PRIORS
    return read_record(Priors, path) if path.is_file() else None


def refuse_foreign_priors(plan: Plan, folder: Path, results: Path) -> None:
    """DatasetError if the masks in the prepared `folder` are not those that the cascade in `results` saw.

    Another cascade may have written its own over them. Nothing is known of results without a note.
    """
    note = find_note(results) if plan.prior_labels else None
    if note is None or not note.stage.networks:
        return
    found = read_priors(folder)
    if found is None or found.networks != note.stage.networks:
        what = "incomplete" if found is None else "of other networks"
        raise DatasetError(
            f"{folder}: the previous stage's masks (_prior.npy) are {what}; {note.folder} was made with "
            f"those of {note.results}. {_how_to_make(note)}"
        )


def _how_to_make(note: FoundNote) -> str:
    """The command of the cascade, which predicts the masks anew and trains only what is not finished."""
    from scripts.crossval_words import OWN, words_of
    from scripts.members import fold_folders
    from scripts.training_command import logged_training

    root = note.folder.parent
    options = logged_training(note.results)
    if options is None or (note.folder, note.results) != (root / CASCADE, root / LOWRES):
        return "Run its scripts/cascade.py again: it makes them anew."
    words = ["python", "scripts/cascade.py", *words_of(options, but=OWN | {"device", "plan"})]
    words += [] if note.stage.plan == DEFAULT_PLAN else ["--plan", note.stage.plan]
    if folds := fold_folders(note.folder):
        words += ["--folds", *map(str, folds)]
    return f"To make them anew run: {shlex.join([*words, '--results', str(root)])}"
