"""Trained models -> one archive."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet.case_features import weights_hash
from nnunet.linear_classifier import FittedClassifier
from nnunet.training.checkpoint import TrainedModel, load_model, model_card
from nnunet.training.portable import write_portable
from scripts.classifier_files import FOLDER as CLASSIFIERS
from scripts.classifier_files import SCORES_SUFFIX
from scripts.members import FOLD_FOLDER, METRICS_FILE, Member, find_members, results_of
from scripts.model_archive import (
    CARD,
    FORMAT,
    MEMBER,
    PREVIOUS,
    WEIGHTS,
    ArchivedFile,
    ArchivedModel,
    ModelCard,
)
from scripts.model_postprocessing import FILE as POSTPROCESSING
from scripts.previous_stage import find_previous_stage, previous_options
from scripts.run_options import RunOptions
from scripts.stage_notes import NOTE, find_note, write_previous_stage
from utils.prepared_folder import SPLITS
from utils.run_log import say
from utils.storage import atomic_file, file_hash, read_json, read_record, to_plain, write_json

PROGRAM = "multitask-nnunet-dali"
PACKAGES = (PROGRAM, "torch", "safetensors", "numpy")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the time of all members: the same models give the same bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A member and where its bytes lie."""

    name: str
    source: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Models of one results folder, each with the archive's folder for it."""

    members: dict[str, Member]
    results: Path
    prefix: str = ""


def pack_models(options: RunOptions, output: Path) -> ModelCard:
    """Write the models of --ckpt_path or of --results to `output` and return the archive's card.

    A fold keeps its folder; what belongs to all folds (postprocessing, splits) lies beside them. Scores are
    packed without the paths of this machine. A classical classifier of other weights is left out, and said.
    The first stage of a cascade goes along: the same folds where there are such, else all. UserError where
    nothing names it.
    """
    with tempfile.TemporaryDirectory(prefix="model_export_") as scratch:
        members = find_members(options)
        last = _stage(members, options.results)
        models, packed = _packed_stage(last, Path(scratch))
        second = [
            member
            for model, member in zip(models, members, strict=True)
            if model.card["plan"]["prior_labels"]
        ]
        if second:
            more, files = _packed_stage(_stage_before(options, second), Path(scratch))
            note = Path(scratch) / NOTE
            write_previous_stage(note.parent, note.parent / PREVIOUS, _networks_noted(options, second))
            models += more
            packed += [*files, _Packed(name=NOTE, source=note)]
        sources = {file.name: file.source for file in packed}
        described = _described(models, sources)
        _write(output, described, sources)
    return described


def _stage(members: Sequence[Member], results: Path, prefix: str = "") -> _Stage:
    """A fold of a cross-validation has a folder, a training has none."""
    folders: dict[str, Member] = {}
    for member in members:
        name = member.results.name
        is_fold = FOLD_FOLDER.fullmatch(name) and member.results.resolve() != results.resolve()
        folders[f"{prefix}{name}" if is_fold else prefix.rstrip("/")] = member
    return _Stage(members=folders, results=results, prefix=prefix)


def _stage_before(options: RunOptions, members: Sequence[Member]) -> _Stage:
    """The first stage of these second ones."""
    path = find_previous_stage(options, members)
    results = results_of(path) if path.is_file() else path
    return _stage(find_members(previous_options(options, path, members)), results, f"{PREVIOUS}/")


def _networks_noted(options: RunOptions, members: Sequence[Member]) -> tuple[str, ...]:
    """Whose masks the second stages have learned from; none where that is not known."""
    note = find_note(members[0].results) if options.previous_stage is None else None
    return () if note is None else note.stage.networks


def _packed_stage(stage: _Stage, scratch: Path) -> tuple[list[ArchivedModel], list[_Packed]]:
    models: list[ArchivedModel] = []
    packed: list[_Packed] = []
    for folder, member in stage.members.items():
        model = load_model(member.checkpoint, torch.device("cpu"))
        card = model_card(model.plan, model.architecture, model.training_cases)
        models.append(ArchivedModel(folder=folder, card=card))
        packed += _packed_model(member, model, models[-1], scratch)
    return models, [*packed, *_found(stage.results, stage.prefix, (POSTPROCESSING, SPLITS))]


def _packed_model(
    member: Member, model: TrainedModel, described: ArchivedModel, scratch: Path
) -> Iterator[_Packed]:
    prefix = described.prefix
    weights = scratch / f"{prefix}{WEIGHTS}"
    write_portable(weights, model.network.state_dict(), described.card)
    yield _Packed(name=f"{prefix}{WEIGHTS}", source=weights)
    metrics = member.results / METRICS_FILE
    if metrics.is_file():
        without_path = scratch / f"{prefix}{METRICS_FILE}"
        write_json(without_path, read_json(metrics) | {"checkpoint": WEIGHTS})
        yield _Packed(name=f"{prefix}{METRICS_FILE}", source=without_path)
    yield from _found(member.results, prefix, (POSTPROCESSING,))
    network = weights_hash(model.network)
    for path in sorted((member.results / CLASSIFIERS).glob("*.json")):
        if path.name.endswith(SCORES_SUFFIX) or not MEMBER.fullmatch(f"{CLASSIFIERS}/{path.name}"):
            continue
        if read_record(FittedClassifier, path).network != network:
            say(f"{path} was fitted on other weights and is left out.")
            continue
        scores = path.with_name(f"{path.stem}{SCORES_SUFFIX}").name
        yield from _found(member.results, prefix, (f"{CLASSIFIERS}/{path.name}", f"{CLASSIFIERS}/{scores}"))


def _found(results: Path, prefix: str, names: Sequence[str]) -> Iterator[_Packed]:
    for name in names:
        if (path := results / name).is_file():
            yield _Packed(name=f"{prefix}{name}", source=path)


def _described(models: Sequence[ArchivedModel], sources: Mapping[str, Path]) -> ModelCard:
    plan: Mapping[str, Any] = models[0].card["plan"]
    return ModelCard(
        format=FORMAT,
        made_with=_versions(),
        dataset=plan["dataset"],
        configuration=plan["configuration"],
        label_names=tuple(plan["label_names"]),
        class_names=tuple(plan["class_names"]),
        models=tuple(models),
        files=tuple(
            ArchivedFile(name=name, size=path.stat().st_size, sha256=file_hash(path))
            for name, path in sources.items()
        ),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the program runs from its folder, without installation
    return found


def _write(output: Path, card: ModelCard, sources: Mapping[str, Path]) -> None:
    """Weights are stored as they are: numbers hardly shrink, and stored ones can be read in place."""
    text = json.dumps(to_plain(card), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_file(output) as stream, zipfile.ZipFile(stream, "w") as made:
        _add(made, CARD, text.encode())
        for name, source in sources.items():
            _add(made, name, source.read_bytes())


def _add(made: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=EARLIEST)
    info.compress_type = zipfile.ZIP_STORED if name.endswith(WEIGHTS) else zipfile.ZIP_DEFLATED
    info.external_attr = 0o100644 << 16
    made.writestr(info, content)
