"""A linear classifier as plain arrays: applied with NumPy alone, wherever it was fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRule:
    """What is pooled where; a classifier keeps it, so that it meets new cases as those of its fit.

    `stages` of the encoder, finest 0, those that it lacks are left out; the label that marks the lesion; how
    windows overlap and blend. Windows are not mirrored.
    """

    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    overlap: float = 0.5
    blend: str = "gaussian"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRule:
    """Standardised features times weights, then a softmax.

    `classes` are those that the fit saw: one row of `weight` and one `intercept` each, over all features. The
    other ones of `num_classes` have probability 0.
    """

    num_classes: int
    classes: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, num_classes) float64 for features (N, F)."""
        standardised = (features - np.array(self.mean)) / np.array(self.scale)
        logits = standardised @ np.array(self.weight).T + np.array(self.intercept)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs = np.zeros((len(features), self.num_classes))
        probs[:, list(self.classes)] = shares / shares.sum(axis=1, keepdims=True)
        return probs


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedClassifier:
    """A rule, the features that it reads, and the network whose encoder makes them.

    `network` is the `weights_hash` of that network: with any other the features mean something else.
    """

    name: str
    network: str
    features: FeatureRule
    rule: LinearRule
