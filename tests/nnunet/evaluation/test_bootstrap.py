"""Bootstrap intervals: weights, groups, and agreement of the fast path with a plain loop."""

import numpy as np
import pytest

from nnunet.evaluation.bootstrap import (
    Resampling,
    bootstrap_interval,
    mean_of,
    of_drawn_cases,
    resample_weights,
)


def test_every_resample_draws_as_many_cases_as_there_are() -> None:
    weights = resample_weights(7, Resampling(num_resamples=50))
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()


def test_cases_of_one_patient_are_drawn_together() -> None:
    weights = resample_weights(4, Resampling(num_resamples=50, groups=("p", "q", "p", "r")))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(20)
    intervals = [bootstrap_interval(mean_of(values), 20, Resampling(seed=seed)) for seed in (5, 5, 6)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_the_fast_mean_equals_a_loop_over_drawn_cases() -> None:
    values = np.array([0.2, np.nan, 0.9, 0.4])

    def slow_mean(drawn: np.ndarray) -> float:
        chosen = values[drawn]
        return float(chosen[~np.isnan(chosen)].mean()) if (~np.isnan(chosen)).any() else np.nan

    resampling = Resampling(num_resamples=200)
    fast = bootstrap_interval(mean_of(values), 4, resampling)
    slow = bootstrap_interval(of_drawn_cases(slow_mean), 4, resampling)
    np.testing.assert_allclose((fast.low, fast.high), (slow.low, slow.high))
    assert fast.num_undefined == slow.num_undefined


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(size=400)
    interval = bootstrap_interval(mean_of(values), 400, Resampling(num_resamples=4000))
    half_width = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.02)


def test_patients_with_equal_cases_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(3).random(10), 10)
    patients = tuple(str(index // 10) for index in range(100))
    alone = bootstrap_interval(mean_of(values), 100)
    grouped = bootstrap_interval(mean_of(values), 100, Resampling(groups=patients))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("groups", [(), ("p",)])
def test_one_patient_gives_no_interval(groups: tuple[str, ...]) -> None:
    interval = bootstrap_interval(mean_of([0.5]), 1, Resampling(groups=groups))
    assert np.isnan([interval.low, interval.high]).all()


def test_groups_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 groups were given for 3 cases"):
        resample_weights(3, Resampling(groups=("p", "q")))
