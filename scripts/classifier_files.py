"""The classical classifiers of a results folder: their files, and which network they belong to."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet.linear_classifier import FeatureRule, FittedClassifier
from scripts.run_options import RunOptions
from utils.contracts import PreprocessedCase
from utils.errors import DatasetError
from utils.storage import atomic_file, read_record, to_plain, write_json

FOLDER = "classifier"
FEATURES_FILE = "features.npz"
SCORES_SUFFIX = "_scores.json"
BRANCH = "branch"  # of --classifier: the network's own answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicalScores:
    """What a fitted classifier scores: on the training cases out of fold, and on the held-out ones.

    Both are a ClassificationSummary as JSON has it; None where there is nothing to score. The network was
    trained on the cases of `out_of_fold`, not on those of `held_out`. `temperature` is that of the rule;
    the answers out of fold were scaled by that of the other folds. A file without it was never calibrated.
    """

    network: str
    num_features: int
    out_of_fold: dict[str, Any] | None
    held_out: dict[str, Any] | None
    temperature: float = 1.0


def classifier_file(results: Path, name: str) -> Path:
    """Where the classifier `name` of a results folder lies."""
    return results / FOLDER / f"{name}.json"


def write_classifier(results: Path, classifier: FittedClassifier, scores: ClassicalScores) -> Path:
    """Write the classifier and its scores, and return the path of the former."""
    path = classifier_file(results, classifier.name)
    write_json(path, classifier)
    write_json(path.with_name(f"{classifier.name}{SCORES_SUFFIX}"), scores)
    return path


def load_classifier(options: RunOptions, network: str, checkpoint: Path) -> FittedClassifier:
    """The classifier of `--classifier`.

    DatasetError with the command to run if it was never fitted, or for another network than that of
    `checkpoint`, whose weights have the hash `network`.
    """
    name = options.inference.classifier
    path = classifier_file(options.results, name)
    command = _fit_command(options, checkpoint)
    if not path.is_file():
        raise DatasetError(f"--classifier {name}: there is no {path}. Fit it: {command}")
    classifier = read_record(FittedClassifier, path)
    if classifier.network != network:
        raise DatasetError(
            f"--classifier {name}: {path} was fitted on another network than that of {checkpoint}. "
            f"Fit it again: {command}"
        )
    return classifier


def read_scores(results: Path, network: str) -> dict[str, ClassicalScores]:
    """The scores of all classifiers in `results` that were fitted on this network, by name."""
    found = {}
    for path in sorted((results / FOLDER).glob(f"*{SCORES_SUFFIX}")):
        scores = read_record(ClassicalScores, path)
        if scores.network == network:
            found[path.name.removesuffix(SCORES_SUFFIX)] = scores
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSource:
    """What the features of some cases depend on: network, rule, precision, and the prepared images."""

    network: str
    rule: FeatureRule
    amp: bool
    cases: tuple[PreprocessedCase, ...]

    def made_by(self) -> str:
        """All but the cases, as text."""
        return json.dumps(to_plain({"network": self.network, "rule": self.rule, "amp": self.amp}))

    def names(self) -> list[str]:
        """The cases."""
        return [case.case_id for case in self.cases]

    def changed_ns(self) -> list[int]:
        """When the images were written."""
        return [case.image.stat().st_mtime_ns for case in self.cases]


def write_features(results: Path, source: FeatureSource, features: np.ndarray) -> None:
    """Keep (N, F) features, one row per case."""
    with atomic_file(results / FOLDER / FEATURES_FILE) as stream:
        np.savez(
            stream,
            features=features,
            case_ids=np.array(source.names()),
            changed_ns=np.array(source.changed_ns(), np.int64),
            made_by=np.array(source.made_by()),
        )


def kept_features(results: Path, source: FeatureSource) -> np.ndarray | None:
    """The features that were kept for just this source; None where there are none."""
    try:
        with np.load(results / FOLDER / FEATURES_FILE, allow_pickle=False) as kept:
            found = (str(kept["made_by"]), kept["case_ids"].tolist(), kept["changed_ns"].tolist())
            features = kept["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Damaged or of another program: they are computed again.
        return None
    return features if found == (source.made_by(), source.names(), source.changed_ns()) else None


def _fit_command(options: RunOptions, checkpoint: Path) -> str:
    words: Sequence[str | Path | int] = (
        *("python", "scripts/fit_classifier.py", "--fit_classifier", options.inference.classifier),
        *("--data", options.data, "--task", options.task, "--dim", options.dim, "--fold", options.fold),
        *("--results", options.results, "--ckpt_path", checkpoint),
    )
    return shlex.join(map(str, words))
