"""Percentile bootstrap intervals over cases, or over patients where a patient has several cases.

A resample is a row of whole-number weights: how often each case was drawn. A statistic maps all rows at once
(R, N) to R values, so that an interval of a mean or a macro-F1 is a matrix product instead of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WeightedStatistic = Callable[[np.ndarray], np.ndarray]

DEFAULT_RESAMPLES = 2000
DEFAULT_LEVEL = 0.95
MIN_GROUPS = 2  # one patient alone says nothing about the spread between patients


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals are drawn; `groups` holds one patient per case, empty when each case is its own."""

    seed: int = 0
    num_resamples: int = DEFAULT_RESAMPLES
    level: float = DEFAULT_LEVEL
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile interval; `num_undefined` resamples had no value and were left out."""

    low: float
    high: float
    level: float
    num_undefined: int = 0


def resample_weights(num_cases: int, resampling: Resampling) -> np.ndarray:
    """(num_resamples, num_cases) float64: how often each case was drawn, with replacement.

    With groups, whole groups are drawn and all cases of a group share its weight (Davison and Hinkley 1997).
    """
    groups = resampling.groups or tuple(str(index) for index in range(num_cases))
    if len(groups) != num_cases:
        raise ValueError(f"{len(groups)} groups were given for {num_cases} cases.")
    _, group_of_case = np.unique(np.array(groups), return_inverse=True)
    num_groups = int(group_of_case.max()) + 1
    generator = np.random.default_rng(resampling.seed)
    shares = np.full(num_groups, 1 / num_groups)
    drawn = generator.multinomial(num_groups, shares, size=resampling.num_resamples)
    return drawn[:, group_of_case].astype(np.float64)


def bootstrap_interval(
    statistic: WeightedStatistic, num_cases: int, resampling: Resampling | None = None
) -> Interval:
    """The percentile interval of `statistic`, which maps weights (R, N) to R values; NaN is left out.

    Both ends are NaN with fewer than two cases (or groups), or when no resample has a value.
    """
    resampling = resampling or Resampling()
    nothing = Interval(low=float("nan"), high=float("nan"), level=resampling.level)
    num_groups = len(set(resampling.groups)) if resampling.groups else num_cases
    if num_groups < MIN_GROUPS:
        return nothing
    values = statistic(resample_weights(num_cases, resampling))
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return nothing
    tail = (1 - resampling.level) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(
        low=float(low),
        high=float(high),
        level=resampling.level,
        num_undefined=int(values.size - defined.size),
    )


def mean_of(values: Sequence[float] | np.ndarray) -> WeightedStatistic:
    """The mean of one value per case, cases with NaN left out of every resample."""
    array = np.asarray(values, dtype=np.float64)
    is_defined = ~np.isnan(array)
    filled = np.where(is_defined, array, 0.0)

    def weighted_mean(weights: np.ndarray) -> np.ndarray:
        total = weights @ is_defined
        return np.divide(weights @ filled, total, out=np.full(len(weights), np.nan), where=total > 0)

    return weighted_mean


def of_drawn_cases(statistic: Callable[[np.ndarray], float]) -> WeightedStatistic:
    """Adapt a statistic of drawn case indices (M,) int64, such as a median, one resample at a time."""

    def one_by_one(weights: np.ndarray) -> np.ndarray:
        indices = np.arange(weights.shape[1])
        return np.array([statistic(np.repeat(indices, row.astype(np.int64))) for row in weights])

    return one_by_one
