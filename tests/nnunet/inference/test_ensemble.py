"""Means by hand, and how many answers are alive while they are taken."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from utils.contracts import Prediction


def answer(first: float, classes: tuple[float, ...] | None = None, weight: float = 1.0) -> MemberAnswer:
    """Two labels in two voxels: `first` in the first, the opposite in the second."""
    one = np.array([[first, 1 - first], [1 - first, first]], np.float32).reshape(2, 1, 1, 2)
    probs = None if classes is None else np.array(classes, np.float32)
    return MemberAnswer(prediction=Prediction(case_id="a", label_probs=one, class_probs=probs), weight=weight)


def test_the_mean_is_of_probabilities() -> None:
    found = mean_prediction([answer(0.9, (1.0, 0.0)), answer(0.2, (0.4, 0.6)), answer(0.1, (0.1, 0.9))])
    np.testing.assert_allclose(found.label_probs[:, 0, 0], [[0.4, 0.6], [0.6, 0.4]], atol=1e-6)
    assert found.class_probs == pytest.approx([0.5, 0.5])
    assert (found.case_id, found.num_members) == ("a", 3)


def test_a_weight_counts() -> None:
    found = mean_prediction([answer(1.0, (1.0, 0.0), weight=0.75), answer(0.0, (0.0, 1.0), weight=0.25)])
    assert found.label_probs[0, 0, 0, 0] == pytest.approx(0.75)
    assert found.class_probs == pytest.approx([0.75, 0.25])


def test_a_member_without_a_class_has_no_say_in_it() -> None:
    found = mean_prediction([answer(1.0, (0.2, 0.8)), answer(0.0)])
    assert found.class_probs == pytest.approx([0.2, 0.8])
    assert mean_prediction([answer(1.0), answer(0.0)]).class_probs is None


def test_answers_are_not_written_to() -> None:
    first = answer(1.0)
    before = first.prediction.label_probs.copy()
    mean_prediction([first, answer(0.0)])
    np.testing.assert_array_equal(first.prediction.label_probs, before)


def test_only_the_latest_answer_is_held() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def members() -> Iterator[MemberAnswer]:
        nonlocal most
        for _ in range(5):
            made = answer(0.5)
            alive.append(weakref.ref(made.prediction.label_probs))
            most = max(most, sum(reference() is not None for reference in alive))
            yield made
            del made

    mean_prediction(members())
    assert most == 1


def test_other_grids_other_classes_and_no_answer_are_refused() -> None:
    small = MemberAnswer(prediction=Prediction(case_id="a", label_probs=np.zeros((2, 1, 1, 1), np.float32)))
    with pytest.raises(ValueError, match="shapes"):
        mean_prediction([answer(0.5), small])
    with pytest.raises(ValueError, match="2 and 3 classes"):
        mean_prediction([answer(0.5, (0.5, 0.5)), answer(0.5, (0.2, 0.2, 0.6))])
    with pytest.raises(ValueError, match="at least one"):
        mean_prediction([])
