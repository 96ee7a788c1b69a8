"""Answers for every case from a rule that was fitted without the case's patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from utils.splits import make_folds

NUM_FOLDS = 5
MIN_FOLDS = 2

FitAndAnswer = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # fitted on (M,) indices, answers for (L,): (L, K)


def answers_out_of_fold(
    class_target: np.ndarray, patients: Sequence[str], num_classes: int, fit_and_answer: FitAndAnswer
) -> np.ndarray | None:
    """(N, num_classes) probabilities, each case answered by a fit on the other folds.

    Folds are patient-wise and stratified by class, five of them, fewer where there are fewer patients; None
    where there are not even two, or where only one class is known.
    """
    num_folds = min(NUM_FOLDS, len(set(patients)))
    if num_folds < MIN_FOLDS or len(np.unique(class_target)) < 2:
        return None
    names = [str(index) for index in range(len(class_target))]
    folds = make_folds(names, patients, [int(value) for value in class_target], num_folds=num_folds)
    answers = np.zeros((len(class_target), num_classes))
    for fold in folds:
        held_out = np.array([int(name) for name in fold.val])
        answers[held_out] = fit_and_answer(np.array([int(name) for name in fold.train]), held_out)
    return answers
