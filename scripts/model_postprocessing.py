"""Which postprocessing a prediction applies: that of its models, a file's, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet.evaluation.postprocessing import Postprocessing, Step
from scripts.ensemble import Ensemble
from scripts.members import FOLD_FOLDER, Member
from scripts.run_options import AUTO, NO_POSTPROCESSING
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.run_log import say
from utils.storage import read_record

FILE = "postprocessing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The steps to apply, and the file that they come from."""

    steps: tuple[Step, ...] = ()
    file: Path | None = None


def choose_postprocessing(wanted: str, ensemble: Ensemble) -> Chosen:
    """What --postprocessing says for these models, in one line on standard error where that is anything.

    `auto` is the file beside the models, where all have the same one and it was found with their weights.
    """
    if wanted == NO_POSTPROCESSING or not ensemble.has_masks:
        return Chosen()
    if wanted != AUTO:
        path = Path(wanted)
        if not path.is_file():
            raise DatasetError(
                f"--postprocessing {path}: there is no such file. Give one, {AUTO} or {NO_POSTPROCESSING}."
            )
        return _said(path, read_postprocessing(path, ensemble.plan))
    files = {file_beside(member) for member in ensemble.members}
    if files == {None}:
        return Chosen()
    path = next(iter(files))
    if len(files) > 1 or path is None:
        say(f"The models do not share one {FILE}: none is applied. --postprocessing FILE chooses one.")
        return Chosen()
    found = read_postprocessing(path, ensemble.plan)
    if found.networks and not set(ensemble.networks()) <= set(found.networks):
        say(f"{path} was found with other weights: it is not applied. Run scripts/crossval.py again.")
        return Chosen()
    return _said(path, found)


def file_beside(member: Member) -> Path | None:
    """The postprocessing of a model's results, or of the cross-validation that it is a fold of."""
    places = [
        place
        for folder in member.places
        for place in (folder, *([folder.parent] if FOLD_FOLDER.fullmatch(folder.name) else []))
    ]
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_postprocessing(path: Path, plan: Plan) -> Postprocessing:
    """The record at `path`; DatasetError where it speaks of labels that the plan does not have."""
    found = read_record(Postprocessing, path)
    used = {label for step in found.steps for label in (*step.labels, step.replacement)}
    if unknown := sorted(label for label in used if not 0 <= label < plan.num_labels):
        raise DatasetError(
            f"{path} cleans label {unknown[0]}, but the model's labels are 0 to {plan.num_labels - 1}. It "
            "belongs to another dataset."
        )
    return found


def describe_steps(steps: Sequence[Step]) -> str:
    """What is kept, in a few words."""
    return ", ".join(f"largest component of {step.name}" for step in steps) or "nothing"


def _said(path: Path, found: Postprocessing) -> Chosen:
    if found.steps:
        say(f"Postprocessing of {path}: {describe_steps(found.steps)}.")
    return Chosen(steps=found.steps, file=path)
