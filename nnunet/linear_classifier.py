"""A linear classifier as plain arrays: applied with NumPy alone, wherever it was fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet.evaluation.class_outputs import SMALLEST_PROBABILITY


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRule:
    """What is pooled where; a classifier keeps it, so that it meets new cases as those of its fit.

    `stages` of the encoder, finest 0, those that it lacks are left out; the label that marks the lesion; how
    windows overlap and blend; whether the `image` itself is pooled, and the region's `shape` told. Windows
    are not mirrored. A file without the last two was fitted without them.
    """

    stages: tuple[int, ...] = (1, 2, 3)
    roi_label: int = -1
    overlap: float = 0.5
    blend: str = "gaussian"
    image: bool = False
    shape: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRule:
    """Standardised features times weights, then a softmax at a temperature.

    `classes` are those that the fit saw: one row of `weight` and one `intercept` each, over all features. The
    other ones of `num_classes` have probability 0. A file without `temperature` was never calibrated.
    """

    num_classes: int
    classes: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]
    temperature: float = 1.0

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, num_classes) float64 for features (N, F)."""
        standardised = (features - np.array(self.mean)) / np.array(self.scale)
        logits = standardised @ np.array(self.weight).T + np.array(self.intercept)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs = np.zeros((len(features), self.num_classes))
        # Not below this, so that a class which the fit saw is never taken for one that it did not.
        probs[:, list(self.classes)] = np.maximum(shares, SMALLEST_PROBABILITY)
        return tempered(probs, self.temperature)


def tempered(class_probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) of shares (N, K), whatever they sum to; a share of 0 stays 0.

    At 1 they are only brought to the sum 1, above they are drawn together; their order never changes.
    """
    powers = class_probs ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedClassifier:
    """A rule, the features that it reads, and the network whose encoder makes them.

    `network` is the `weights_hash` of that network: with any other the features mean something else.
    """

    name: str
    network: str
    features: FeatureRule
    rule: LinearRule
