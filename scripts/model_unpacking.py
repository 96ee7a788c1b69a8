"""Unpacked models, before they are put in place: weights fit their network, every record is one."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunet.linear_classifier import FittedClassifier
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import MODEL_FORMAT, check_weights
from nnunet.training.portable import read_portable
from scripts.classifier_files import FOLDER as CLASSIFIERS
from scripts.classifier_files import SCORES_SUFFIX, ClassicalScores
from scripts.members import METRICS_FILE
from scripts.model_archive import CARD, PREVIOUS, WEIGHTS, ArchivedModel, ModelCard
from scripts.model_postprocessing import FILE as POSTPROCESSING
from scripts.model_postprocessing import read_postprocessing
from scripts.stage_notes import NOTE, PreviousStage
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.prepared_folder import SPLITS
from utils.splits import read_folds
from utils.storage import from_plain, read_json, read_record

BUILD_FAULTS = (ValueError, RuntimeError, TypeError, ArithmeticError, LookupError)  # of a forged plan


def check_models(archive: Path, card: ModelCard, folder: Path) -> None:
    """DatasetError, in the name of `archive`, unless all that was unpacked into `folder` is a model's.

    No network is built for it: a forged plan could ask for more memory than there is.
    """
    _check_note(archive, card, folder)
    for model in card.models:
        root = folder / model.folder
        described, weights = read_portable(root / WEIGHTS)
        if described != model.card:
            raise DatasetError(f"{archive}: {CARD} and {model.prefix}{WEIGHTS} describe different models.")
        plan = _check_network(f"{archive}: {model.folder or CARD}", model, weights)
        _check_records(root, plan)
        _check_records(folder / PREVIOUS if model.is_previous else folder, plan)


def _check_note(archive: Path, card: ModelCard, folder: Path) -> None:
    """A first stage is in the archive just where the note is that names it, and nothing elsewhere."""
    has_note = (folder / NOTE).is_file()
    if has_note and read_record(PreviousStage, folder / NOTE).results != PREVIOUS:
        raise DatasetError(f"{archive}: {NOTE} names another place than {PREVIOUS}.")
    if has_note != any(model.is_previous for model in card.models):
        raise DatasetError(f"{archive} holds only one of {NOTE} and models in {PREVIOUS}.")


def _check_network(source: str, model: ArchivedModel, weights: dict[str, torch.Tensor]) -> Plan:
    if model.card.get("format") != MODEL_FORMAT or not {"plan", "architecture"} <= model.card.keys():
        raise DatasetError(f"{source} has no model description of format {MODEL_FORMAT}.")
    plan = from_plain(Plan, model.card["plan"], source=f"{source}: plan")
    architecture = from_plain(Architecture, model.card["architecture"], source=f"{source}: architecture")
    try:
        with torch.device("meta"):
            network = MultiTaskUNet(plan, architecture)
    except BUILD_FAULTS as error:
        raise DatasetError(f"{source} describes no network that can be built: {error}.") from error
    check_weights(source, network, weights)
    return plan


def _check_records(root: Path, plan: Plan) -> None:
    for path in sorted((root / CLASSIFIERS).glob("*.json")):
        read_record(ClassicalScores if path.name.endswith(SCORES_SUFFIX) else FittedClassifier, path)
    if (root / POSTPROCESSING).is_file():
        read_postprocessing(root / POSTPROCESSING, plan)
    if (root / SPLITS).is_file():
        read_folds(root / SPLITS)
    if (root / METRICS_FILE).is_file() and not isinstance(read_json(root / METRICS_FILE), dict):
        raise DatasetError(f"{METRICS_FILE} of the archive is no object.")
