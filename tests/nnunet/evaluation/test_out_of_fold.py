"""Every case is answered once, by a fit that saw neither it nor its patient."""

import numpy as np
import pytest

from nnunet.evaluation.out_of_fold import answers_out_of_fold


def test_fits_see_the_other_folds_only_and_answers_keep_the_order_of_the_cases() -> None:
    target = np.tile([0, 1, 2], 8)
    patients = [str(index // 2) for index in range(24)]
    fits: list[set[int]] = []

    def fit_and_answer(fitted_on: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        seen = {patients[index] for index in fitted_on}
        assert not seen & {patients[index] for index in held_out}
        assert set(target[fitted_on]) == {0, 1, 2}
        fits.append(set(held_out.tolist()))
        return np.stack([held_out, held_out, held_out], axis=1)

    answers = answers_out_of_fold(target, patients, 3, fit_and_answer)
    assert answers is not None
    np.testing.assert_array_equal(answers[:, 0], np.arange(24))
    assert len(fits) == 5
    assert sum(len(held_out) for held_out in fits) == 24


def test_fewer_patients_than_folds_make_fewer_folds() -> None:
    count = []

    def fit_and_answer(_: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        count.append(len(held_out))
        return np.zeros((len(held_out), 2))

    answers_out_of_fold(np.array([0, 1, 0, 1]), ["p", "p", "q", "q"], 2, fit_and_answer)
    assert count == [2, 2]


@pytest.mark.parametrize(("target", "patients"), [([0, 1], ["p", "p"]), ([1, 1], ["p", "q"])])
def test_one_patient_or_one_class_allows_no_fit(target: list[int], patients: list[str]) -> None:
    def never(_: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        raise AssertionError

    assert answers_out_of_fold(np.array(target), patients, 2, never) is None
