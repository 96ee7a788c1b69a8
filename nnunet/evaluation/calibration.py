"""Temperature scaling: one number that makes confidences honest and leaves the answers as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from nnunet.evaluation.class_outputs import SMALLEST_PROBABILITY
from nnunet.evaluation.class_probabilities import (
    ProbabilityScores,
    checked_probabilities,
    checked_target,
    nll_per_case,
    probability_scores,
)
from nnunet.evaluation.out_of_fold import answers_out_of_fold

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0  # a fit that reaches a bound has no finite optimum


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureScaling:
    """A fitted temperature, and what it changes for cases that took no part in the fit.

    `temperature` is fitted on all cases, for use on new ones; above 1 the model was overconfident. `before`
    and `after` belong to the same cases, the latter scaled by the temperature of the folds without them.
    Where no fit is possible the temperature is 1, `after` is None and `reason` says why.
    """

    temperature: float
    before: ProbabilityScores
    after: ProbabilityScores | None
    reason: str = ""


def fit_temperature(class_target: np.ndarray, class_probs: np.ndarray) -> float:
    """The temperature with the lowest NLL for targets (N,) and probabilities (N, K) (Guo et al. 2017).

    The logarithm of a probability is a logit up to a constant that the softmax removes, so probabilities
    averaged over windows or members are scaled after averaging (Ashukha et al. 2020).
    """

    def mean_nll(log_temperature: float) -> float:
        scaled = scale_probabilities(class_probs, float(np.exp(log_temperature)))
        return float(nll_per_case(class_target, scaled).mean())

    bounds = (np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE))
    found: Any = minimize_scalar(mean_nll, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def scale_probabilities(class_probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) of (N, K); the order of the classes of a case never changes."""
    logits = np.log(np.maximum(class_probs, SMALLEST_PROBABILITY))
    return softmax(logits / temperature, axis=1)


def calibrate(
    class_target: np.ndarray,
    class_probs: np.ndarray,
    class_names: Sequence[str],
    *,
    patients: Sequence[str] = (),
) -> TemperatureScaling:
    """Fit a temperature and measure out of fold what it does.

    Targets (N,), probabilities (N, K), one patient per case (each case its own where none is given). Raises
    DatasetError for targets or probabilities that do not fit `class_names`.
    """
    target = checked_target(np.asarray(class_target), class_names)
    probs = checked_probabilities(np.asarray(class_probs), len(target), class_names)
    groups = tuple(patients) or tuple(str(index) for index in range(len(target)))

    def fit_and_answer(fitted_on: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        return scale_probabilities(probs[held_out], fit_temperature(target[fitted_on], probs[fitted_on]))

    before = probability_scores(target, probs)
    scaled = answers_out_of_fold(target, groups, len(class_names), fit_and_answer)
    if scaled is None:
        return TemperatureScaling(
            temperature=1.0, before=before, after=None, reason="a fit needs two patients and two classes"
        )
    temperature = fit_temperature(target, probs)
    is_bound = not LOWEST_TEMPERATURE * 1.01 < temperature < HIGHEST_TEMPERATURE / 1.01
    return TemperatureScaling(
        temperature=temperature,
        before=before,
        after=probability_scores(target, scaled),
        reason="the best temperature lies outside the range that is searched" if is_bound else "",
    )
